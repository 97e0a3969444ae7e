"""Where the milliseconds of one event go, and how near training comes to the ceiling.

    python -m experiments.benchmark.event_inference --size=tiny
    python -m experiments.benchmark.event_inference --size=wan2.2-ti2v-5b --dtype=bfloat16 \\
        --frames=17,33,65 --train

One event is one jitted program: one video forward at s*, keys and values of
every layer once, then the action schedule over them. The parts are also timed
as programs of their own; what they leave of the whole is "other". All weights
are random. The ceiling is a large matrix product timed in the same run, so the
shares can be compared between machines where the milliseconds cannot.

The sizes of the event follow the published setting: three views of 192x224,
126 tokens per latent frame, eight control steps per latent frame.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from experiments.common import quiet
from wallwm_jax.episodes import clock
from wallwm_jax.input.assemble import EventItem, assemble
from wallwm_jax.input.batch import Batch, BatchDims
from wallwm_jax.models.action_tower import ActionConfig
from wallwm_jax.models.conditioning import noised_frames, observe
from wallwm_jax.models.denoiser import Denoiser
from wallwm_jax.models.flops import Sequence, forward_flops
from wallwm_jax.models.umt5 import UMT5_SIZES, UMT5Config
from wallwm_jax.models.video_tower import VideoConfig
from wallwm_jax.models.wan_config import WAN_SIZES, WanConfig
from wallwm_jax.rollout.inference import InferenceConfig, act

FLAGS = flags.FLAGS
flags.DEFINE_enum("size", "tiny", sorted(WAN_SIZES), "video tower")
flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of parameters and activations")
flags.DEFINE_list("frames", ["17"], "latent frames of the event, several separated by commas")
flags.DEFINE_integer("action_steps", 50, "of the action schedule", lower_bound=1)
flags.DEFINE_integer("action_width", 0, "of the action tower; 0: 1024, and 96 with tiny")
flags.DEFINE_list("grid", ["12", "14"], "height and width of the latents")
flags.DEFINE_integer("repeats", 10, "runs of each program", lower_bound=1)
flags.DEFINE_bool("train", False, "also time forward and backward of the video tower")
flags.DEFINE_string("json", "", "file for the results")

VIEWS, STATE, TEXT = 3, 20, 512


def towers() -> Denoiser:
    """The denoiser the flags ask for; its text encoder is never run."""
    tiny = FLAGS.size == "tiny"
    dtypes = dict(dtype=FLAGS.dtype, param_dtype=FLAGS.dtype)
    wan = WanConfig(**WAN_SIZES[FLAGS.size], **dtypes, remat="full" if FLAGS.train else "none")
    width = FLAGS.action_width or (96 if tiny else 1024)
    action = ActionConfig(
        width=width,
        heads=4 if tiny else wan.heads,
        layers=wan.layers,
        ffn=4 * width,
        video_width=wan.width,
        views=VIEWS,
        action_dim=20,
        state_dim=STATE,
        steps_per_latent=clock.STRIDE * clock.GROUP,
        max_latent_frames=65,
        **dtypes,
    )
    text = UMT5Config(**UMT5_SIZES["tiny"] | dict(width=wan.text_width))
    return Denoiser(
        text_config=text,
        video_config=VideoConfig(wan=wan, views=VIEWS, text_padding="zeros"),
        action_config=action,
    )


def one_event(denoiser: Denoiser, frames: int) -> Batch:
    """A random event of `frames` latent frames as a batch of one."""
    rng = np.random.default_rng(0)
    height, width = map(int, FLAGS.grid)
    channels = denoiser.video_config.wan.out_channels
    steps = clock.longest_event(frames)
    dims = BatchDims(
        sequences=1,
        views=VIEWS,
        frames=frames,
        height=height,
        width=width,
        channels=channels,
        actions=steps,
        events=1,
        state=STATE,
        text=TEXT,
    )
    item = EventItem(
        latents=rng.standard_normal((VIEWS, frames, height, width, channels), np.float32),
        visible=np.ones((VIEWS, frames, height, width), bool),
        intrinsics=np.tile(np.eye(3, dtype=np.float32), (frames, VIEWS, 1, 1)),
        extrinsics=np.tile(np.eye(4, dtype=np.float32), (frames, VIEWS, 1, 1)),
        actions=rng.standard_normal((steps, 20), np.float32),
        action_mask=np.ones(20, bool),
        state=rng.standard_normal(STATE, np.float32),
        text=np.ones(TEXT, np.int32),
        text_mask=np.ones(TEXT, bool),
        event_id=0,
    )
    return jax.device_put(Batch.stack([assemble([item], dims)]))


def milliseconds(program: Callable[..., Any], *arguments: Any) -> float:
    """Median of the runs, each waited for; the first one compiles and is not counted."""
    jax.block_until_ready(program(*arguments))
    found = []
    for _ in range(FLAGS.repeats):
        start = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        found.append(1e3 * (time.perf_counter() - start))
    return statistics.median(found)


def ceiling(dtype: str) -> float:
    """Floating-point operations per second of a large square matrix product."""
    side = 8192 if jax.default_backend() != "cpu" else 2048
    a = jnp.ones((side, side), dtype)
    return 2 * side**3 / (1e-3 * milliseconds(jax.jit(lambda x: x @ x), a))


@dataclasses.dataclass(frozen=True)
class Programs:
    """The whole inference of one event and its parts, each jitted by itself."""

    denoiser: Denoiser
    config: InferenceConfig
    batch: Batch

    def whole(self, params: Any, text: jax.Array, key: jax.Array) -> jax.Array:
        """One anchored video forward and the action schedule."""
        sketch = self.batch.latents
        return act(self.denoiser, self.config, params, self.batch, text, sketch, key)

    def video(self, params: Any, text: jax.Array) -> jax.Array:
        """The video forward at s*: features of every block."""
        sigma = jnp.where(noised_frames(self.batch, "clean"), self.config.end, 0.0)
        given = observe(self.batch.latents, self.batch)
        arguments = (params, self.batch.latents, sigma, self.batch, text, given)
        return self.denoiser.video_velocity(*arguments)[1]

    def cache(self, params: Any, features: jax.Array) -> Any:
        """Keys and values of the action tower."""
        grid = self.denoiser.token_grid(self.batch.latents.shape)
        return self.denoiser.feature_cache(params, features, self.batch, grid)

    def action(self, params: Any, cache: Any) -> jax.Array:
        """One step of the action schedule."""
        level = jnp.full(self.batch.action_segment.shape, 0.5)
        arguments = (params, self.batch.actions, level, self.batch, cache)
        return self.denoiser.action_velocity(*arguments)

    def train(self, params: Any, text: jax.Array) -> Any:
        """Forward and backward of the video tower on a mean square."""

        def loss(video: Any) -> jax.Array:
            sigma = jnp.where(noised_frames(self.batch, "clean"), 0.5, 0.0)
            given = observe(self.batch.latents, self.batch)
            whole = params | {"video": video}
            arguments = (whole, self.batch.latents, sigma, self.batch, text, given)
            return jnp.mean(jnp.square(self.denoiser.video_velocity(*arguments)[0]))

        return jax.grad(loss)(params["video"])


def measure(frames: int, peak: float) -> dict[str, float]:
    """Milliseconds of one event of `frames` latent frames, whole and in parts."""
    denoiser = towers()
    batch = one_event(denoiser, frames)
    config = InferenceConfig(video_steps=1, action_steps=FLAGS.action_steps)
    run = Programs(denoiser, config, batch)
    init = jax.jit(lambda key: nn.unbox(denoiser.init(key, batch.latents, batch)))
    params = init(jax.random.key(0))
    wan = denoiser.video_config.wan
    text = jnp.zeros((1, 1, TEXT, wan.text_width), FLAGS.dtype)
    features = jax.jit(run.video)(params, text)
    cache = jax.jit(run.cache)(params, features)
    parts = {
        "whole": milliseconds(jax.jit(run.whole), params, text, jax.random.key(1)),
        "video forward": milliseconds(jax.jit(run.video), params, text),
        "keys and values": milliseconds(jax.jit(run.cache), params, features),
        "one action step": milliseconds(jax.jit(run.action), params, cache),
    }
    del features, cache
    done = parts["video forward"] + parts["keys and values"]
    parts["action schedule"] = parts["whole"] - done
    height, width = denoiser.token_grid(batch.latents.shape)
    shape = Sequence(
        frames=frames, frame_tokens=height * width, text=TEXT, views=VIEWS, times=frames
    )
    flops = sum(forward_flops(wan, shape, cross_view=True, duration=True).values())
    parts["video share of ceiling"] = flops / (1e-3 * parts["video forward"] * peak)
    if FLAGS.train:
        parts["video forward+backward"] = milliseconds(jax.jit(run.train), params, text)
        spent = 1e-3 * parts["video forward+backward"] * peak
        # Counted as 3 forwards; what rematerialisation repeats is not counted.
        parts["training share of ceiling"] = 3 * flops / spent
    return parts


def main(argv: list[str]) -> None:
    """Measures every number of frames and prints a table."""
    if argv[1:]:
        raise app.UsageError(f"unknown argument {argv[1]!r}")
    quiet()
    peak = ceiling(FLAGS.dtype)
    device = jax.devices()[0]
    print(f"{FLAGS.size}, {FLAGS.dtype}, {device.device_kind}: ceiling {peak / 1e12:.2f} TFLOP/s")
    results: dict[str, Any] = {"ceiling_flops": peak, "device": device.device_kind}
    for frames in map(int, FLAGS.frames):
        results[str(frames)] = parts = measure(frames, peak)
        print(f"\n{frames} latent frames, {FLAGS.action_steps} action steps")
        for name, value in parts.items():
            print(
                f"  {name:26} {value:9.1%}" if "share" in name else f"  {name:26} {value:9.2f} ms"
            )
    if FLAGS.json:
        with open(FLAGS.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    app.run(main)
