"""Running the video tower along the flow, from noise to a level.

Shared by training (the action tower's own sketches) and rollout, so that both
mean the same thing by "denoised to s*".

Letters: B sequences, V views, F latent frames, h w grid, C channels, E events.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from wallwm_jax.flow.samplers import euler
from wallwm_jax.flow.schedule import sigmas
from wallwm_jax.models.conditioning import noised_frames, observe
from wallwm_jax.models.denoiser import Denoiser
from wallwm_jax.types import PackedEvents, Params


def dream(
    denoiser: Denoiser,
    params: Params,
    latents: Float[Array, "B V F h w C"],
    packed: PackedEvents,
    text: Float[Array, "B E L Dt"],
    key: Key[Array, ""],
    *,
    steps: int,
    shift: float,
    end: float | Float[Array, ""] = 0.0,
) -> Float[Array, "B V F h w C"]:
    """Video latents from noise down to level `end`.

    Frames that carry no noise (`noised_frames`: the observed ones, in the
    "clean" form) stay as they are.

    Args:
      latents: only the observed frames are read.
      steps: Euler steps; 0 leaves the noise as it is, whatever `end`.
      shift: timestep shift of the schedule.
      end: the level to stop at; s* leaves the half-dry sketch.
    """
    noised = noised_frames(packed, denoiser.conditioning)
    keep = ~noised[:, None]
    noise = jax.random.normal(key, latents.shape)
    start = jnp.where(keep[..., None, None, None], latents, noise)
    if steps == 0:
        return start
    given = observe(latents, packed)

    def velocity(z: Array, sigma: Array) -> Array:
        level = jnp.where(noised, sigma, 0.0)
        return denoiser.video_velocity(params, z, level, packed, text, given)[0]

    return euler(velocity, start, sigmas(steps, end=end, shift=shift), frozen=keep).z
