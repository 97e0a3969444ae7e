"""A small denoiser, packed batches and ways to run them, for the tower tests."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from wallwm_jax.input.batch import Batch, BatchDims
from wallwm_jax.models.action_tower import ActionConfig
from wallwm_jax.models.conditioning import frame_sigma, input_channels, observe
from wallwm_jax.models.denoiser import Denoiser
from wallwm_jax.models.umt5 import UMT5Config
from wallwm_jax.models.video_tower import VideoConfig
from wallwm_jax.models.wan_config import WanConfig

DIMS = BatchDims(
    sequences=2,
    views=3,
    frames=9,
    height=4,
    width=6,
    channels=5,
    actions=40,
    events=4,
    text=5,
    state=7,
)


def small_denoiser(video: dict | None = None, **action) -> Denoiser:
    """Unequal widths, an odd grid, head dimensions that no axis split divides evenly."""
    video = dict(views=3) | (video or {})
    wan = WanConfig(
        width=40,
        heads=2,
        layers=3,
        ffn=64,
        in_channels=input_channels(video.get("conditioning", "clean"), 5),
        out_channels=5,
        text_width=12,
        gate_bias=0.5,
    )
    sizes = dict(
        width=24,
        heads=2,
        layers=3,
        ffn=32,
        video_width=40,
        views=3,
        action_dim=20,
        state_dim=7,
        steps_per_latent=8,
        max_latent_frames=9,
    )
    return Denoiser(
        text_config=UMT5Config(vocabulary=64, width=12, heads=2, head_dim=6, layers=2, ffn=16),
        video_config=VideoConfig(wan=wan, **video),
        action_config=ActionConfig(**(sizes | action)),
    )


def wan_of(video: dict) -> dict:
    """The parameters of the inherited tower inside a video tower's."""
    embedding = {k: v for k, v in video["embedding"].items() if k != "duration_in"}
    return {"embedding": embedding, "blocks": video["blocks"]["wan"], "head": video["head"]}


def products(jaxpr, shape: tuple[int, ...]) -> int:
    """How often a program multiplies by a matrix of this shape, turns of its scans counted."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            total += equation.invars[1].aval.shape == shape
        inner = [getattr(x, "jaxpr", x) for x in jax.tree.leaves(list(equation.params.values()))]
        inside = sum(products(x, shape) for x in inner if hasattr(x, "eqns"))
        assert not (inside and equation.primitive.name in ("while", "cond")), "cannot be counted"
        total += inside * equation.params.get("length", 1)
    return total


def shaken(params, seed: int = 1):
    """Every parameter moved a little, so that nothing is hidden behind a zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: x + np.asarray(0.05 * rng.standard_normal(x.shape), np.float32), params
    )


def unpacked(batch: Batch, row: int, slot: int) -> tuple[Batch, np.ndarray, np.ndarray]:
    """One event of a packed batch alone in a sequence; (batch, its frames, its steps)."""
    frames = np.flatnonzero(np.asarray(batch.frame_segment[row]) == slot + 1)
    steps = np.flatnonzero(np.asarray(batch.action_segment[row]) == slot + 1)
    alone = {}
    for field in dataclasses.fields(Batch):
        value = np.asarray(getattr(batch, field.name))[row]
        if field.name in ("latents", "visible"):
            value = value[:, frames]
        elif field.name in ("frame_segment", "frame_index", "intrinsics", "extrinsics"):
            value = value[frames]
        elif field.name in ("actions", "action_segment", "action_index"):
            value = value[steps]
        else:
            value = value[slot : slot + 1]
        if field.name.endswith("segment"):
            value = np.ones_like(value)
        alone[field.name] = jnp.asarray(value[None])
    return Batch(**alone), frames, steps


def slots_of(batch: Batch) -> list[tuple[int, int]]:
    """(row, slot) of every real event."""
    return [(int(r), int(s)) for r, s in np.argwhere(np.asarray(batch.event_length) > 0)]


def run_towers(denoiser: Denoiser, params, batch: Batch, levels=None):
    """Both towers at one noise level per event; (video, actions, features) as numpy."""
    levels = 0.1 + 0.7 * (batch.event_length % 5) / 5 if levels is None else levels
    sigma = frame_sigma(batch, levels, denoiser.conditioning)

    @jax.jit
    def run(params, batch):
        text = denoiser.encode_text(params, batch)
        given = observe(batch.latents, batch)
        video, features = denoiser.video_velocity(params, batch.latents, sigma, batch, text, given)
        cache = denoiser.feature_cache(
            params, features, batch, denoiser.token_grid(batch.latents.shape)
        )
        at = jnp.full(batch.action_segment.shape, 0.3)
        return video, denoiser.action_velocity(params, batch.actions, at, batch, cache), features

    return jax.tree.map(np.asarray, run(params, batch))
