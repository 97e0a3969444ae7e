"""Running the denoiser along the flow: which frames, at which level, to where.

Shared by training (the action tower's own sketches) and rollout, so that both
mean the same thing by "observed", "future" and "denoised to s*".

Letters: B sequences, V views, F latent frames, h w grid, C channels, E events.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from wallwm_jax.flow.samplers import euler
from wallwm_jax.flow.schedule import sigmas
from wallwm_jax.models.denoiser import Denoiser
from wallwm_jax.models.layers import spread
from wallwm_jax.types import PackedEvents, Params


def future_frames(packed: PackedEvents) -> Bool[Array, "B F"]:
    """Latent frames that are imagined: real, and not the observed key frame."""
    return (packed.frame_segment > 0) & (packed.frame_index > 0)


def frame_sigma(packed: PackedEvents, per_event: Float[Array, "B E"]) -> Float[Array, "B F"]:
    """Each event's noise level on its future frames, 0 on the observed one."""
    return jnp.where(future_frames(packed), spread(per_event, packed.frame_segment), 0.0)


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
    """Video latents from noise down to level `end`, observed frames kept clean.

    Args:
      latents: only the observed frames are read.
      steps: Euler steps.
      shift: timestep shift of the schedule.
      end: the level to stop at; s* leaves the half-dry sketch.
    """
    future = future_frames(packed)
    keep = ~future[:, None]
    noise = jax.random.normal(key, latents.shape)
    start = jnp.where(keep[..., None, None, None], latents, noise)

    def velocity(z: Array, sigma: Array) -> Array:
        return denoiser.video_velocity(params, z, jnp.where(future, sigma, 0.0), packed, text)[0]

    return euler(velocity, start, sigmas(steps, end=end, shift=shift), frozen=keep).z
