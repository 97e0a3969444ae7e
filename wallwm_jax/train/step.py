"""One update, as a pure function of (state, batch)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from wallwm_jax.input.batch import Batch
from wallwm_jax.models.denoiser import Denoiser
from wallwm_jax.optim.ema import ema_update
from wallwm_jax.train.accumulate import accumulated_gradients
from wallwm_jax.train.objectives import Losses, ObjectiveConfig, counted_elements
from wallwm_jax.train.stages import Stage
from wallwm_jax.train.state import TrainState
from wallwm_jax.types import Params

Metrics = dict[str, Float[Array, ""]]


def train_step(
    denoiser: Denoiser,
    stage: Stage,
    config: ObjectiveConfig,
    optimizer: optax.GradientTransformation,
    schedule: Callable[[Array], Array],
    ema_limit: float,
    seed: int,
    state: TrainState,
    batch: Batch,
    *,
    accumulate: int = 1,
) -> tuple[TrainState, Metrics]:
    """Gradients of the stage's loss, one optimizer update, one EMA update.

    Randomness is folded from (seed, step): nothing carries a key through the
    loop, so a resumed run draws what the uninterrupted one would have drawn.

    An update whose loss, gradient or step is not finite is not taken: parameters,
    optimizer state and average stay bit for bit, schedules do not advance, and only
    the step counter and the counters of skipped updates move on.

    Args:
      accumulate: micro-batches per update, see `accumulate`.

    Returns:
      (new state, metrics before the update: "loss", its parts, "grad_norm" and
      "update_norm" of all and of each part that trains, "lr" as a share of the
      peak, "skipped_total" and "skipped_in_row" after it).
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)

    def loss(trained: Params, batch: Batch, key: Array) -> Losses:
        return stage.objective(denoiser, config, state.frozen | trained, batch, key)

    if accumulate == 1:
        (value, parts), grads = jax.value_and_grad(loss, has_aux=True)(state.params, batch, key)
    else:
        counts = partial(counted_elements, denoiser)
        (value, parts), grads = accumulated_gradients(
            loss, counts, state.params, batch, key, accumulate
        )
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    norms = norms_of("grad_norm", grads) | norms_of("update_norm", updates)
    finite = jnp.isfinite(jnp.stack([value, norms["grad_norm"], norms["update_norm"]])).all()
    taken = state.step - state.skipped
    params = optax.apply_updates(state.params, updates)
    ema = ema_update(state.ema, params, taken, ema_limit)
    after = state.replace(
        step=state.step + 1,
        params=either(finite, params, state.params),
        opt_state=either(finite, opt_state, state.opt_state),
        ema=either(finite, ema, state.ema),
        skipped=state.skipped + ~finite,
        skipped_in_row=jnp.where(finite, 0, state.skipped_in_row + 1),
    )
    metrics = parts | norms | {"tokens": real_tokens(denoiser, batch)}
    metrics |= {"loss": value, "lr": jnp.asarray(schedule(taken), jnp.float32)}
    metrics |= {"skipped_total": after.skipped, "skipped_in_row": after.skipped_in_row}
    return after, jax.tree.map(lambda x: x.astype(jnp.float32), metrics)


def either(choice: Bool[Array, ""], new: Any, old: Any) -> Any:
    """`new` where the choice holds, otherwise `old`, bit for bit."""
    return jax.tree.map(lambda a, b: jnp.where(choice, a, b), new, old)


def norms_of(name: str, tree: Params) -> Metrics:
    """Norm of everything as `name`, and of every part as `name/part`."""
    parts = {f"{name}/{part}": optax.tree_utils.tree_norm(x) for part, x in tree.items()}
    return {name: optax.tree_utils.tree_norm(tree)} | parts


def real_tokens(denoiser: Denoiser, batch: Batch) -> Float[Array, ""]:
    """Video tokens of all views and action steps of a batch that are no padding."""
    height, width = denoiser.token_grid(batch.latents.shape)
    per_frame = batch.latents.shape[1] * height * width
    frames, steps = jnp.sum(batch.frame_segment > 0), jnp.sum(batch.action_segment > 0)
    return (frames * per_frame + steps).astype(jnp.float32)
