"""Noise levels: Wan's shift, denoising schedules, and the anchor s*.

Time t in [0, 1] is uniform, the level sigma follows by the shift map

    sigma(t) = shift t / (1 + (shift - 1) t),       sigma(0) = 0, sigma(1) = 1    (1)

which spends more of the steps at high noise (shift 5: half of them above 0.83).
Its inverse is the same map with 1/shift. A denoising schedule of S steps has
S + 1 levels sigma(1), sigma(1 - 1/S), ..., sigma(0), counted from noise.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key, UInt32

Rng = Key[Array, ""] | UInt32[Array, "2"]


def shift_time(t: ArrayLike, shift: float | int = 5.0) -> Float[Array, "..."]:
    """Time t -> level sigma, equation (1)."""
    t = jnp.asarray(t, jnp.float32)
    return shift * t / (1 + (shift - 1) * t)


def unshift(sigma: ArrayLike, shift: float | int = 5.0) -> Float[Array, "..."]:
    """Level sigma -> time t, inverse of `shift_time`."""
    return shift_time(sigma, 1 / shift)


def sigmas(
    steps: int, start: ArrayLike = 1.0, end: ArrayLike = 0.0, shift: float | int = 5.0
) -> Float[Array, "levels"]:
    """Levels of `steps` Euler steps from level `start` down to level `end`.

    Uniform in t, so stopping early does not move the levels before it: with
    e = s_star_sigma(45, 50), `sigmas(45, end=e)` are the first 46 of `sigmas(50)`.

    Args:
      steps: at least 1.
      start, end: LEVELS (not times) in [0, 1]; traced values are fine.
      shift: see equation (1).

    Returns:
      steps + 1 levels.

    Raises:
      ValueError: fewer than one step.
    """
    if steps < 1:
        raise ValueError(f"sigmas: steps={steps}; a schedule needs at least one step")
    first, last = unshift(start, shift), unshift(end, shift)
    fraction = jnp.arange(steps + 1, dtype=jnp.float32) / steps
    return shift_time(first + (last - first) * fraction, shift)


def s_star_sigma(step: ArrayLike, steps: int = 50, shift: float | int = 5.0) -> Float[Array, "..."]:
    """Level after `step` of `steps` denoising steps, counted from noise.

    The action tower reads the video at s* = 45 of 50, sigma = 0.357 with shift
    5: a half-dry sketch (method section 3, 1-to-Nd). `step` may be fractional.
    """
    return shift_time(1 - jnp.asarray(step, jnp.float32) / steps, shift)


def sample_sigma(rng: Rng, shape: tuple[int, ...], shift: float | int = 5.0) -> Float[Array, "..."]:
    """Training levels: t uniform on [0, 1), then shifted; one per event or example."""
    return shift_time(jax.random.uniform(rng, shape), shift)


def sample_s_star(
    rng: Rng,
    shape: tuple[int, ...],
    *,
    step: float | int = 45,
    steps: int = 50,
    window: float | int = 1.0,
    shift: float | int = 5.0,
) -> Float[Array, "..."]:
    """Training levels of the anchored video forward: s* with a small jitter.

    The anchor is uniform on step +- window (steps, counted from noise), clipped
    to the schedule, so that inference with another number of video steps, whose
    last level differs a little, meets features the action tower has seen.
    """
    offset = jax.random.uniform(rng, shape, minval=-window, maxval=window)
    return s_star_sigma(jnp.clip(step + offset, 0, steps), steps, shift)
