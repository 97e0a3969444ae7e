"""Compiles a config's video tower for a TPU topology; no TPU is needed.

    python -m experiments.aot --config=configs/wan22_ti2v_5b.py --topology=v5p:4x4x4 --json=aot.json

Says what each chip needs, whether it has it, which attention runs where, what
is communicated, and how XLA's FLOPs of one layer compare with ours. What does
not fit, or cannot be compiled for, ends in one line and exit status 1.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import flags, logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments.common import run
from wallwm_jax.models.flops import Sequence, forward_flops
from wallwm_jax.models.video_tower import VideoConfig, VideoTower
from wallwm_jax.models.wan_config import WAN_SIZES, WanConfig
from wallwm_jax.models.wan_dit import WanDiT
from wallwm_jax.parallel import aot
from wallwm_jax.parallel.mesh import batch_sharding, make_mesh, param_shardings
from wallwm_jax.train import build

TOPOLOGY = flags.DEFINE_string("topology", "v5p:4x4x4", "TPU topology to compile for")
WHAT = flags.DEFINE_enum(
    "what",
    "forward",
    ["forward", "wan"],
    "forward: the multi-view tower; wan: Wan alone, the views side by side in one picture",
)
JSON = flags.DEFINE_string("json", "", "file that gets the figures")
QUICK = flags.DEFINE_bool(
    "quick", False, "compile with little optimisation: seconds, but not the real memory plan"
)


def video_config(config: ConfigDict) -> VideoConfig:
    """The tower's sizes, without a dataset to take any from.

    Raises:
      AotError: the config does not say how large a picture is.
    """
    missing = [key for key in ("views", "height", "width") if key not in config.data]
    if missing:
        raise aot.AotError(
            f"config.data lacks {missing}, which a program is compiled for; see configs/wan22_ti2v_5b.py"
        )
    section = build.sized(WAN_SIZES, config.video, "video")
    grafts = {key: section.pop(key) for key in build.GRAFTS if key in section}
    wan = build.construct(WanConfig, section, "video")
    return build.construct(VideoConfig, grafts, "video", wan=wan, views=config.data.views)


def inputs(config: ConfigDict, wan: WanConfig, what: str) -> tuple[Sequence, dict[str, Any]]:
    """One sequence in numbers, and the shapes of the tower's inputs without their batch."""
    data, pack = config.data, config.pack
    views, frames, words = data.views, pack.frames, (pack.text_length, wan.text_width)
    height, width = (size // config.codec.patch for size in (data.height, data.width))
    tokens = height // wan.patch[1] * (width // wan.patch[2])
    if what == "wan":
        sequence = Sequence(frames=frames, frame_tokens=views * tokens, text=words[0])
        shapes = dict(
            latents=((frames, height, views * width, wan.in_channels), wan.dtype),
            timestep=((), "float32"),
            text=(words, wan.dtype),
        )
        return sequence, shapes
    sequence = Sequence(
        frames=frames,
        frame_tokens=tokens,
        text=pack.events * words[0],
        views=views,
        times=frames,
    )
    shapes = dict(
        latents=((views, frames, height, width, wan.in_channels), wan.dtype),
        timestep=((frames, 1), "float32"),
        text=((pack.events, *words), wan.dtype),
        text_mask=((pack.events, words[0]), "bool"),
        frame_segment=((frames,), "int32"),
        frame_index=((frames,), "int32"),
        duration=((frames, 1), "float32"),
    )
    return sequence, shapes


def forward(
    config: ConfigDict, sizes: VideoConfig, what: str, sequences: int, mesh: Mesh
) -> tuple[aot.Program, int]:
    """The forward as a program over the mesh, and our count of its FLOPs over all chips.

    A training step is to come as another such function.
    """
    module = WanDiT(sizes.wan) if what == "wan" else VideoTower(sizes)
    sequence, shapes = inputs(config, sizes.wan, what)
    batch = {
        name: jax.ShapeDtypeStruct(
            (sequences, *size), jnp.dtype(dtype), sharding=batch_sharding(mesh)
        )
        for name, (size, dtype) in shapes.items()
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    boxed = jax.eval_shape(lambda key, batch: module.init(key, **batch)["params"], key, batch)
    params = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        nn.meta.unbox(boxed),
        param_shardings(boxed, mesh),
    )

    def velocity(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        out = module.apply({"params": params}, **batch)
        return out if what == "wan" else out[0]

    grafted = what != "wan"
    flops = forward_flops(
        sizes.wan, sequence, cross_view=grafted, duration=grafted and sizes.duration
    )
    return aot.Program(function=velocity, arguments=(params, batch)), sequences * sum(
        flops.values()
    )


def measure(config: ConfigDict, topology: str, what: str, *, quick: bool = False) -> dict[str, Any]:
    """Compiles the whole program and one layer of it with plain attention.

    Returns:
      The figures, JSON values; bytes and FLOPs are per chip and run.

    Raises:
      AotError: libtpu is missing or does not know the topology, the sequences
        do not divide over the mesh, or the program does not fit a chip.
    """
    sizes = video_config(config)
    devices = aot.topology_devices(topology)
    mesh = make_mesh(config.mesh.to_dict(), devices)
    sequences, parts = config.pack.sequences or mesh.size, mesh.shape["data"] * mesh.shape["fsdp"]
    if sequences % parts:
        raise aot.AotError(
            f"config.pack.sequences = {sequences} does not divide over data x fsdp = {parts}; choose a multiple"
        )
    one_layer = dataclasses.replace(
        sizes, wan=dataclasses.replace(sizes.wan, layers=1, attention="xla")
    )
    program, _ = forward(config, sizes, what, sequences, mesh)
    layer_program, layer_flops = forward(config, one_layer, what, sequences, mesh)
    logging.set_verbosity(logging.INFO)  # which attention was picked, as it is
    whole = aot.compile_program(program, mesh, quick=quick)
    logging.set_verbosity(logging.WARNING)
    layer = aot.compile_program(layer_program, mesh, quick=True)  # only its FLOPs are read
    return {
        "topology": topology,
        "what": what,
        "quick": quick,
        "sequences": sequences,
        "chips": whole.chips,
        "hbm_bytes_per_chip": whole.hbm,
        "hbm_limit_bytes": whole.hbm_limit,
        "arguments_bytes": whole.arguments,
        "temporaries_bytes": whole.temporaries,
        "outputs_bytes": whole.outputs,
        "flops_per_layer": layer.flops,
        "flops_per_layer_analytic": layer_flops / whole.chips,
        "collective_bytes": whole.collectives,
        "kernels": whole.kernels,
        "compile_seconds": round(whole.compile_seconds, 1),
        "fits": whole.fits,
    }


def table(figures: dict[str, Any]) -> str:
    """The figures for a person."""
    gb = lambda n: "unknown" if n is None else f"{n / 1e9:.2f} GB"  # noqa: E731
    named = lambda counts, show: ", ".join(f"{k} {show(n)}" for k, n in counts.items()) or "none"  # noqa: E731
    flops, analytic = figures["flops_per_layer"], figures["flops_per_layer_analytic"]
    rows = {
        "program": f"{figures['what']}, {figures['sequences']} sequences on {figures['chips']} chips of {figures['topology']}",
        "memory per chip": f"{gb(figures['hbm_bytes_per_chip'])} of {gb(figures['hbm_limit_bytes'])}",
        "  arguments": gb(figures["arguments_bytes"]),
        "  temporaries": gb(figures["temporaries_bytes"]),
        "  outputs": gb(figures["outputs_bytes"]),
        "attention kernels": named(figures["kernels"], lambda n: f"x{n}"),
        "collectives": named(figures["collective_bytes"], gb),
        "FLOPs of one layer": f"{flops / 1e12:.4f} T by XLA, {analytic / 1e12:.4f} T by hand, {flops / analytic - 1:+.2%}",
        "compiled in": f"{figures['compile_seconds']} s",
    }
    return "\n".join(f"{name:<20} {value}" for name, value in rows.items())


def main(config: ConfigDict) -> None:
    """Compiles, prints, writes."""
    figures = measure(config, TOPOLOGY.value, WHAT.value, quick=QUICK.value)
    print(table(figures))
    if JSON.value:
        Path(JSON.value).write_text(json.dumps(figures, indent=2) + "\n")
    if not figures["fits"]:
        raise aot.AotError(
            f"the program needs {figures['hbm_bytes_per_chip']} bytes per chip but a chip of {figures['topology']} has "
            f"{figures['hbm_limit_bytes']}; use more chips or fewer sequences"
        )


if __name__ == "__main__":
    aot.prepare_process()
    run(main)
