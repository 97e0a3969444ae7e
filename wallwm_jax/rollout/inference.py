"""One event, imagined and acted: the jitted programs of inference.

    video   noise --(n_video_steps Euler steps)--> latents at s*
    once    one forward at s* --> keys and values of every layer (the cache)
    action  noise --(n_action_steps Euler steps over the cache)--> trajectory

The video is never run again per action step (method section 3, 1-to-Nd). The
same functions serve closed loop, offline evaluation and pictures.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from wallwm_jax.flow.corrupt import corrupt, to_velocity
from wallwm_jax.flow.samplers import euler
from wallwm_jax.flow.schedule import s_star_sigma, sigmas
from wallwm_jax.models.conditioning import noised_frames, observe, observed_frames
from wallwm_jax.models.denoiser import Denoiser
from wallwm_jax.models.imagination import dream
from wallwm_jax.models.layers import spread
from wallwm_jax.types import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """Steps and anchor of inference.

    Attributes:
      video_steps: Euler steps from noise to s*; 1 to 45 (open in the sources).
        0 leaves the anchored forward as the only one: it reads pure noise, for
        towers trained with s_star = 0.
      action_steps: Euler steps of the action schedule.
      shift, action_shift: timestep shifts, as in training.
      s_star, s_star_steps: the anchor, counted from noise.
      action_target: what the action tower predicts, "v" or "x".
    """

    video_steps: int = 8
    action_steps: int = 10
    shift: float = 5.0
    action_shift: float = 1.0
    s_star: float = 45.0
    s_star_steps: int = 50
    action_target: str = "v"

    @property
    def end(self) -> Float[Array, ""]:
        """The anchor's noise level; without a video step that of pure noise."""
        if self.video_steps == 0:
            return jnp.ones(())
        return s_star_sigma(self.s_star, self.s_star_steps, self.shift)


class Imagined(NamedTuple):
    """An imagined event.

    Attributes:
      actions: normalised trajectory, [B, A, Da].
      sketch: video latents at s*, [B, V, F, h, w, C]; observed frames are clean
        where the tower takes them in place.
    """

    actions: Float[Array, "B A Da"]
    sketch: Float[Array, "B V F h w C"]


def act(
    denoiser: Denoiser,
    config: InferenceConfig,
    params: Params,
    batch,
    text: Array,
    sketch: Array,
    key: Key[Array, ""],
) -> Float[Array, "B A Da"]:
    """Actions from video latents at s*: one video forward, then the action schedule.

    Of `batch.latents` only the observed frames are read.
    """
    sigma = jnp.where(noised_frames(batch, denoiser.conditioning), config.end, 0.0)
    given = observe(batch.latents, batch)
    _, features = denoiser.video_velocity(params, sketch, sigma, batch, text, given)
    cache = denoiser.feature_cache(params, features, batch, denoiser.token_grid(sketch.shape))
    real = spread(batch.action_mask, batch.action_segment) & (batch.action_segment > 0)[..., None]

    def velocity(a: Array, sigma: Array) -> Array:
        level = jnp.broadcast_to(sigma, batch.action_segment.shape)
        predicted = denoiser.action_velocity(params, a, level, batch, cache)
        return jnp.where(real, to_velocity(predicted, a, sigma, config.action_target), 0.0)

    noise = jax.random.normal(key, batch.actions.shape) * real
    levels = sigmas(config.action_steps, shift=config.action_shift)
    return euler(velocity, noise, levels).z


@partial(jax.jit, static_argnums=(0, 1))
def imagine(
    denoiser: Denoiser, config: InferenceConfig, params: Params, batch, key: Key[Array, ""]
) -> Imagined:
    """Imagines every event of a batch and acts on the model's own sketch.

    Args:
      batch: packed events; of the latents only observed frames are read, and
        the actions are not read at all.
    """
    video_key, action_key = jax.random.split(key)
    text = denoiser.encode_text(params, batch)
    sketch = dream(
        denoiser,
        params,
        batch.latents,
        batch,
        text,
        video_key,
        steps=config.video_steps,
        shift=config.shift,
        end=config.end,
    )
    return Imagined(act(denoiser, config, params, batch, text, sketch, action_key), sketch)


@partial(jax.jit, static_argnums=(0, 1))
def act_on_truth(
    denoiser: Denoiser, config: InferenceConfig, params: Params, batch, key: Key[Array, ""]
) -> Imagined:
    """As `imagine`, but the sketch is ground truth noised to s* (a diagnostic)."""
    video_key, action_key = jax.random.split(key)
    sigma = jnp.where(noised_frames(batch, denoiser.conditioning), config.end, 0.0)
    sketch = corrupt(
        batch.latents, jax.random.normal(video_key, batch.latents.shape), sigma[:, None]
    )
    text = denoiser.encode_text(params, batch)
    return Imagined(act(denoiser, config, params, batch, text, sketch, action_key), sketch)


@partial(jax.jit, static_argnums=(0, 1, 2))
def dream_clean(
    denoiser: Denoiser,
    config: InferenceConfig,
    steps: int,
    params: Params,
    batch,
    key: Key[Array, ""],
) -> Float[Array, "B V F h w C"]:
    """The whole imagined video, denoised to the end (for pictures and video metrics).

    Observed frames are shown as they were observed, in every form of conditioning.
    """
    text = denoiser.encode_text(params, batch)
    z = dream(denoiser, params, batch.latents, batch, text, key, steps=steps, shift=config.shift)
    seen = observed_frames(batch)[:, None, :, None, None, None]
    return jnp.where(seen, batch.latents, z)
