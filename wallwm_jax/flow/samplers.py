"""Euler integration of the flow from noise towards data.

    z_{i+1} = z_i + (sigma_{i+1} - sigma_i) v(z_i, sigma_i)

as ONE `lax.scan` over pairs of levels: a single compiled loop without host round
trips. Where it stops is the schedule's business: levels that end at s* leave the
half-dry latents which the action tower reads, and levels that start there go on.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from wallwm_jax.flow.corrupt import expand

Velocity = Callable[[Float[Array, "*data"], Float[Array, "..."]], Float[Array, "*data"]]


class Sample(NamedTuple):
    """Where the integration ended, and optionally every state on the way.

    Attributes:
      z: state at the last level.
      trajectory: [steps + 1, ...] states at all levels, the start included; None
        unless asked for (it multiplies the memory by the number of steps).
    """

    z: Float[Array, "*data"]
    trajectory: Float[Array, "levels *data"] | None


def euler(
    velocity: Velocity,
    z: Float[Array, "*data"],
    sigmas: Float[Array, "levels *lead"],
    *,
    frozen: Bool[Array, "..."] | None = None,
    trajectory: bool = False,
) -> Sample:
    """Integrates `velocity` over consecutive levels.

    Args:
      velocity: (z, sigma) -> dz/dsigma. Wrap networks of another kind with
        `corrupt.to_velocity`. Receives sigma as [*lead], one entry of `sigmas`.
      z: state at sigmas[0]; pure noise when that is 1.
      sigmas: decreasing levels, [n + 1] for one schedule, or [n + 1, *lead] with
        the leading axes of `z` when events differ.
      frozen: elements that stay as they are (observed latent frames kept clean
        in place), leading axes of `z`.
      trajectory: also return the state at every level.

    Returns:
      `Sample`, z in the dtype of the input: steps are added in that precision,
      so pass float32 even when the network computes in bfloat16.

    Raises:
      ValueError: fewer than two levels.
    """
    if sigmas.shape[0] < 2:
        raise ValueError(f"euler: sigmas {sigmas.shape} has fewer than two levels; nothing to do")

    def step(state, pair):
        sigma, following = pair
        change = expand(following - sigma, state) * velocity(state, sigma).astype(state.dtype)
        if frozen is not None:
            change = jnp.where(expand(frozen, state), 0, change)
        state = (state + change).astype(state.dtype)
        return state, state if trajectory else None

    last, states = jax.lax.scan(step, z, (sigmas[:-1], sigmas[1:]))
    if states is not None:
        states = jnp.concatenate([z[None], states])
    return Sample(last, states)
