"""Exponential moving average of parameters, with a warm-up of its decay.

    decay_t = min(decay, (1 + t) / (10 + t)),    ema <- decay_t ema + (1 - decay_t) p

Early on the average would otherwise be dominated by the initial weights: with
the paper's 0.9999 for ten thousand steps. The warm-up makes it an average over
about the last tenth of the run until the run is long enough.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float


def ema_decay(step: ArrayLike, decay: float = 0.9999) -> Float[Array, ""]:
    """decay_t for the update after `step` earlier ones (0 for the first)."""
    step = jnp.asarray(step, jnp.float32)
    return jnp.minimum(decay, (1 + step) / (10 + step))


def ema_update(ema: Any, params: Any, step: ArrayLike, decay: float = 0.9999) -> Any:
    """One step of the average; start from `ema = params`.

    Args:
      ema: averages; keep them in float32: in bfloat16 a step of 1e-4 rounds away.
      params: parameters after the update, same structure.
      step: number of updates before this one (traced is fine).
      decay: limit of the decay.

    Returns:
      The new averages, in the dtypes of `ema`.
    """
    keep = ema_decay(step, decay)
    # Written as a difference so that ema == params is an exact fixed point.
    return jax.tree.map(
        lambda e, p: (e + (1 - keep) * (p.astype(e.dtype) - e)).astype(e.dtype), ema, params
    )
