"""The train state, and its shape-first, sharded initialisation."""

from functools import partial
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
from wallwm_jax.models.video_tower import graft
from wallwm_jax.parallel.mesh import optimizer_shardings, param_shardings, replicated, shaped
from wallwm_jax.types import Params


@flax.struct.dataclass
class TrainState:
    """Everything a step changes, and the frozen parameters it reads.

    Attributes:
      step: batches so far; data and randomness follow from it.
      params: parameters that train in this stage, {part: tree}.
      frozen: parameters that do not (text encoder, fitted codec, earlier stages).
      opt_state: of the optimizer, for `params` only.
      ema: average of `params`, float32.
      skipped: of those steps, the updates that were not finite and not taken.
      skipped_in_row: how many of them were the last ones.
    """

    step: Any
    params: Params
    frozen: Params
    opt_state: Any
    ema: Params
    skipped: Any
    skipped_in_row: Any


def state_shapes(
    denoiser: Denoiser,
    optimizer: optax.GradientTransformation,
    trains: tuple[str, ...],
    codec: Params | None,
    dims: BatchDims,
    mesh: Mesh,
) -> TrainState:
    """Shape, dtype and sharding of everything in a run's state; nothing is computed.

    Args:
      denoiser: the three towers.
      optimizer: for the parts that train.
      trains: names of the parts that train, of {"text", "video", "action"}.
      codec: fitted codec parameters; they ride along frozen, so that a
        checkpoint is complete by itself. None: the codec is inherited, and
        training on latents does not need it.
      dims: sizes of a packed batch.
      mesh: where to.

    Returns:
      A state of ShapeDtypeStructs.
    """
    # The key's shape too: on devices that are not there, none can be made.
    key = jax.eval_shape(lambda: jax.random.key(0))
    boxed = jax.eval_shape(partial(_towers, denoiser, dims), key)
    params, of = nn.meta.unbox(boxed), param_shardings(boxed, mesh)
    if codec is not None:
        params = params | {"codec": codec}
        of = of | {"codec": jax.tree.map(lambda _: replicated(mesh), codec)}
    trained = {name: params[name] for name in trains}
    places = {name: of[name] for name in trains}
    shapes = TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        params=trained,
        frozen={name: tree for name, tree in params.items() if name not in trains},
        opt_state=jax.eval_shape(optimizer.init, trained),
        ema=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), trained),
        skipped=jax.ShapeDtypeStruct((), jnp.int32),
        skipped_in_row=jax.ShapeDtypeStruct((), jnp.int32),
    )
    shardings = TrainState(
        step=replicated(mesh),
        params=places,
        frozen={name: of[name] for name in shapes.frozen},
        opt_state=optimizer_shardings(optimizer, trained, places, mesh),
        ema=places,
        skipped=replicated(mesh),
        skipped_in_row=replicated(mesh),
    )
    return shaped(shapes, shardings)


def init_state(
    denoiser: Denoiser,
    optimizer: optax.GradientTransformation,
    shapes: TrainState,
    dims: BatchDims,
    key: Array,
    *,
    given: Params,
    wan: Params | None = None,
) -> TrainState:
    """Initialises straight into the run's shardings.

    One jitted program writes every shard where it belongs, so no host ever
    holds a whole model; what is given or grafted over is never drawn.

    Args:
      denoiser, optimizer, dims: as for `state_shapes`.
      shapes: what that gave.
      key: of the random initialisation.
      given: frozen parts that exist already, on the host or on devices.
      wan: an inherited DiT; the video tower starts as `graft` makes it. Its
        buffers are used up.
    """
    drawn = [name for name in shapes.frozen if name not in given]

    def init(key: Array, wan: Params | None) -> TrainState:
        params = nn.meta.unbox(_towers(denoiser, dims, key))
        if wan is not None:
            params["video"] = graft(wan, params["video"])
        trained = {name: params[name] for name in shapes.params}
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=trained,
            frozen={name: params[name] for name in drawn},
            opt_state=optimizer.init(trained),
            ema=jax.tree.map(lambda x: x.astype(jnp.float32), trained),
            skipped=jnp.zeros((), jnp.int32),
            skipped_in_row=jnp.zeros((), jnp.int32),
        )

    made = shapes.replace(frozen={name: shapes.frozen[name] for name in drawn})
    places = jax.tree.map(lambda x: x.sharding, made)
    state = jax.jit(init, out_shardings=places, donate_argnums=1)(key, wan)
    return state.replace(frozen=state.frozen | placed(given, shapes.frozen))


def placed(given: Params, shapes: Params) -> Params:
    """Parts that exist already, in the dtypes and places of the state's shapes."""

    def put(x: Any, shape: jax.ShapeDtypeStruct) -> Array:
        return jax.device_put(
            x if x.dtype == shape.dtype else x.astype(shape.dtype), shape.sharding
        )

    return {name: jax.tree.map(put, tree, shapes[name]) for name, tree in given.items()}


def _towers(denoiser: Denoiser, dims: BatchDims, key: Array) -> Params:
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), Batch.spec(dims))
    return denoiser.init(key, zeros.latents, zeros)


def parameter_counts(params: Params) -> dict[str, int]:
    """Number of scalars in each part."""
    return {name: sum(int(x.size) for x in jax.tree.leaves(tree)) for name, tree in params.items()}
