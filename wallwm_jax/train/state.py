"""The train state, and its shape-first, sharded initialisation."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from wallwm_jax.input.batch import Batch, BatchDims
from wallwm_jax.models.denoiser import Denoiser
from wallwm_jax.parallel.mesh import optimizer_shardings, param_shardings, replicated
from wallwm_jax.types import Params


@flax.struct.dataclass
class TrainState:
    """Everything a step changes, and the frozen parameters it reads.

    Attributes:
      step: updates so far.
      params: parameters that train in this stage, {part: tree}.
      frozen: parameters that do not (text encoder, codec, earlier stages).
      opt_state: of the optimizer, for `params` only.
      ema: average of `params`, float32.
    """

    step: Any
    params: Params
    frozen: Params
    opt_state: Any
    ema: Params


def init_state(
    denoiser: Denoiser,
    optimizer: optax.GradientTransformation,
    trains: tuple[str, ...],
    codec: Params,
    dims: BatchDims,
    mesh: Mesh,
    key: Array,
) -> tuple[TrainState, TrainState]:
    """Initialises straight into the run's shardings.

    Shapes come first: the parameters are traced, their shardings looked up, and
    one jitted program then writes every shard where it belongs, so no host ever
    holds a whole model.

    Args:
      denoiser: the three towers.
      optimizer: for the parts that train.
      trains: names of the parts that train, of {"text", "video", "action"}.
      codec: fitted codec parameters; they ride along frozen, so that a
        checkpoint is complete by itself.
      dims: sizes of a packed batch.
      mesh: where to.
      key: of the random initialisation.

    Returns:
      (state, shardings), trees of one structure.
    """
    spec = Batch.spec(dims)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), spec)

    def init(key: Array) -> TrainState:
        params = nn.meta.unbox(denoiser.init(key, zeros.latents, zeros)) | {"codec": codec}
        trained = {name: params[name] for name in trains}
        frozen = {name: tree for name, tree in params.items() if name not in trains}
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=trained,
            frozen=frozen,
            opt_state=optimizer.init(trained),
            ema=jax.tree.map(lambda x: x.astype(jnp.float32), trained),
        )

    boxed = jax.eval_shape(lambda k: denoiser.init(k, zeros.latents, zeros), key)
    of = param_shardings(boxed, mesh) | {"codec": jax.tree.map(lambda _: replicated(mesh), codec)}
    abstract = jax.eval_shape(init, key)
    trained = {name: of[name] for name in abstract.params}
    shardings = TrainState(
        step=replicated(mesh),
        params=trained,
        frozen={name: of[name] for name in abstract.frozen},
        opt_state=optimizer_shardings(optimizer, abstract.params, trained, mesh),
        ema=trained,
    )
    return jax.jit(init, out_shardings=shardings)(key), shardings


def parameter_counts(params: Params) -> dict[str, int]:
    """Number of scalars in each part."""
    return {name: sum(int(x.size) for x in jax.tree.leaves(tree)) for name, tree in params.items()}
