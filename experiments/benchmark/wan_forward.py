"""Seconds per forward of the Wan DiT, ours and diffusers', on the same weights.

    python -m experiments.benchmark.wan_forward [--cases=small,middle,wide] [--json=FILE]

Needs the parity extra (`make parity`). The two models take turns, so that what
else the machine does falls on both; the ratio of their medians and of their
best times is the result, the seconds are of this machine only.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np
import torch
from absl import app, flags
from diffusers import WanTransformer3DModel

from experiments.common import quiet
from wallwm_jax.convert import load_pretrained

CASES = {
    # name: sizes of the model, (latent frames, height, width), text tokens
    "small": (dict(num_attention_heads=4, attention_head_dim=24, ffn_dim=384, text_dim=64), (5, 16, 16), 16),
    "middle": (dict(num_attention_heads=8, attention_head_dim=64, ffn_dim=2048, text_dim=512), (9, 24, 28), 128),
    # The layers of Wan2.1-1.3B, four of its thirty.
    "wide": (dict(num_attention_heads=12, attention_head_dim=128, ffn_dim=8960), (5, 24, 28), 512),
    # The layers of Wan2.2-TI2V-5B, two of its thirty.
    "5b": (
        dict(num_attention_heads=24, attention_head_dim=128, ffn_dim=14336, in_channels=48, out_channels=48, num_layers=2),
        (5, 12, 14),
        512,
    ),
}  # fmt: skip

FLAGS = flags.FLAGS
flags.DEFINE_list("cases", list(CASES), f"which of {', '.join(CASES)}")
flags.DEFINE_integer("repeats", 15, "forwards of each model", lower_bound=1)
flags.DEFINE_integer("threads", 2, "of PyTorch; ours takes the cores it is given", lower_bound=1)
flags.DEFINE_string("json", "", "file for the results")


def seconds(ours: Callable[[], None], theirs: Callable[[], None], repeats: int) -> dict[str, float]:
    """Median and best seconds of two functions that take turns."""
    found: dict[str, list[float]] = {"ours": [], "diffusers": []}
    for turn in range(repeats + 1):
        for name, function in (("ours", ours), ("diffusers", theirs)):
            start = time.perf_counter()
            function()
            if turn:  # the first turn compiles and warms up
                found[name].append(time.perf_counter() - start)
    result = {f"{name}_median": statistics.median(times) for name, times in found.items()}
    result |= {f"{name}_best": min(times) for name, times in found.items()}
    result["ratio_of_medians"] = result["ours_median"] / result["diffusers_median"]
    result["ratio_of_best"] = result["ours_best"] / result["diffusers_best"]
    return result


def compare(case: str, repeats: int) -> dict[str, float]:
    """Runs one case; also the largest relative difference of the two outputs."""
    config, shape, text_length = CASES[case]
    torch.manual_seed(0)
    model = WanTransformer3DModel(**({"num_layers": 4} | config)).eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        module, params = load_pretrained(folder)
    latents = torch.randn(1, model.config.in_channels, *shape)
    text, timestep = torch.randn(1, text_length, model.config.text_dim), torch.tensor([500.0])
    call = jax.jit(module.apply)
    inputs = [x.numpy() for x in (latents.movedim(1, -1), timestep, text)]
    inputs = jax.device_put(inputs)

    def ours() -> np.ndarray:
        return np.asarray(call({"params": params}, *inputs))

    def theirs() -> torch.Tensor:
        with torch.inference_mode():
            return model(latents, timestep, text, return_dict=False)[0]

    want = theirs().movedim(1, -1).numpy()
    difference = float(np.abs(ours() - want).max() / np.abs(want).max())
    return seconds(ours, theirs, repeats) | {"difference": difference}


def main(argv: list[str]) -> None:
    """Runs the cases and prints one line each."""
    if argv[1:] or set(FLAGS.cases) - CASES.keys():
        raise app.UsageError(f"--cases takes {', '.join(CASES)}")
    quiet()
    torch.set_num_threads(FLAGS.threads)
    results = {}
    print(
        f"{'case':8} {'ours ms':>10} {'diffusers ms':>13} {'ratio':>7} {'best/best':>10} {'difference':>11}"
    )
    for case in FLAGS.cases:
        r = results[case] = compare(case, FLAGS.repeats)
        print(
            f"{case:8} {1e3 * r['ours_median']:10.1f} {1e3 * r['diffusers_median']:13.1f} "
            f"{r['ratio_of_medians']:7.2f} {r['ratio_of_best']:10.2f} {r['difference']:11.1e}",
            flush=True,
        )
    if FLAGS.json:
        with open(FLAGS.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    app.run(main)
