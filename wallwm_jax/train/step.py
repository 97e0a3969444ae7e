"""One update, as a pure function of (state, batch)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from wallwm_jax.input.batch import Batch
from wallwm_jax.models.denoiser import Denoiser
from wallwm_jax.optim.ema import ema_update
from wallwm_jax.train.objectives import ObjectiveConfig
from wallwm_jax.train.stages import Stage
from wallwm_jax.train.state import TrainState

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
) -> tuple[TrainState, Metrics]:
    """Gradients of the stage's loss, one optimizer update, one EMA update.

    Randomness is folded from (seed, step): nothing carries a key through the
    loop, so a resumed run draws what the uninterrupted one would have drawn.

    Returns:
      (new state, metrics before the update: "loss", its parts, "grad_norm",
      "update_norm", "lr" as a share of the peak).
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)

    def loss(trained: dict) -> tuple[Array, Metrics]:
        return stage.objective(denoiser, config, state.frozen | trained, batch, key)

    (value, parts), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = parts | {
        "loss": value,
        "grad_norm": optax.tree_utils.tree_norm(grads),
        "update_norm": optax.tree_utils.tree_norm(updates),
        "lr": jnp.asarray(schedule(state.step), jnp.float32),
    }
    state = state.replace(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        ema=ema_update(state.ema, params, state.step, ema_limit),
    )
    return state, metrics
