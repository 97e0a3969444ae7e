"""Learning-rate shapes with peak 1; peaks are set where they are used.

One schedule drives every group of parameters (Muon's and AdamW's peaks differ,
their shape does not), so a run has a single answer to "how far along is it?".
"""

import jax.numpy as jnp
import optax


def warmup_cosine(total_steps: int, warmup_steps: int, final: float = 0.0) -> optax.Schedule:
    """Linear warm-up, then a half cosine that finishes on the last step.

    Args:
      total_steps: number of updates N of the run; counts are 0 .. N-1.
      warmup_steps: W < N. Count k < W gives (k+1)/W: the first update already
        moves, and count W-1 is the peak.
      final: value at count N-1, kept afterwards.

    Returns:
      count -> factor in [0, 1], float32, usable inside jit.

    Raises:
      ValueError: the warm-up does not fit inside the run.
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"warmup_cosine: warmup_steps={warmup_steps} must be in 0..{total_steps - 1} "
            f"(total_steps={total_steps}); shorten the warm-up"
        )

    def schedule(count):
        step = jnp.asarray(count, jnp.float32)
        rise = (step + 1) / max(warmup_steps, 1)
        # The peak belongs to the warm-up's last step, the end to step N-1.
        start = max(warmup_steps - 1, 0)
        progress = jnp.clip((step - start) / max(total_steps - 1 - start, 1), 0, 1)
        fall = final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return jnp.where(step < warmup_steps, rise, fall)

    return schedule


def warmup_constant(warmup_steps: int) -> optax.Schedule:
    """Linear warm-up as in `warmup_cosine`, then 1 for good (runs without a set end)."""

    def schedule(count):
        step = jnp.asarray(count, jnp.float32)
        return jnp.minimum((step + 1) / max(warmup_steps, 1), 1.0)

    return schedule
