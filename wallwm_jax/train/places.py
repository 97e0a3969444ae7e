"""Where the parameters of a run lie, known before there is an optimizer."""

from typing import Any

import jax
import optax
from jax.sharding import Mesh

from wallwm_jax.input.batch import BatchDims
from wallwm_jax.models.denoiser import Denoiser
from wallwm_jax.parallel.mesh import activate
from wallwm_jax.train.state import state_shapes


def parameter_places(
    denoiser: Denoiser, trains: tuple[str, ...], dims: BatchDims, mesh: Mesh
) -> dict[str, Any]:
    """Shardings of the parameters that train, {part: tree}; nothing is computed.

    Args:
      denoiser: the three towers.
      trains: names of the parts that train.
      dims: sizes of a packed batch.
      mesh: the run's mesh.
    """
    with activate(mesh):
        shapes = state_shapes(denoiser, optax.identity(), trains, None, dims, mesh)
    return jax.tree.map(lambda x: x.sharding, shapes.params)
