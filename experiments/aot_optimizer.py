"""What one optimizer update of Wan needs of every chip, compiled without a TPU.

    python -m experiments.aot --config=configs/wan22_ti2v_5b.py --only=optimizer --optimizer=muon

Three optimizers of the same parameters in the same places, bfloat16 gradients
in, float32 parameters and momentum updated in place: "muon" is ours, "adamw"
is optax's, "optax_muon" is `optax.contrib.muon` told which axes form the
matrices. Clipping is left out of all three: it is the same for each.

The matrices are whole projections: 8 of 3072 x 3072 and 2 of 3072 x 14336 a
layer in Wan2.2-TI2V-5B, 300 in all. (A training run cuts queries, keys, values
and output kernels into heads, which is less work.)
"""

from functools import partial
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from optax.contrib import MuonDimensionNumbers

from wallwm_jax.models.wan_config import WAN_SIZES, WanConfig
from wallwm_jax.models.wan_dit import WanDiT
from wallwm_jax.optim.build import make_optimizer
from wallwm_jax.optim.matrices import MatrixAxes
from wallwm_jax.optim.muon import muon_plan
from wallwm_jax.optim.rules import match_rules
from wallwm_jax.optim.schedules import warmup_constant
from wallwm_jax.parallel import aot
from wallwm_jax.parallel.mesh import (
    activate,
    make_mesh,
    optimizer_shardings,
    param_shardings,
    shaped,
)
from wallwm_jax.train import build

Kind = Literal["muon", "adamw", "optax_muon"]

WHOLE = (
    (r".*/(query|key|value)/linear/kernel", MatrixAxes(rows=(-3,), cols=(-2, -1))),
    (r".*/(self|text)_attention/out/kernel", MatrixAxes(rows=(-3, -2), cols=(-1,))),
    (r".*", MatrixAxes()),
)
"""Every projection one matrix, whatever its heads."""

RATE, BETA, DECAY = 1e-4, 0.95, 0.1


def wan_shapes(config: ConfigDict, mesh: Mesh) -> tuple[Any, Any]:
    """Shapes of Wan's parameters under "video", and their shardings."""
    section = build.sized(WAN_SIZES, config.video, "video")
    section = {key: value for key, value in section.items() if key not in build.GRAFTS}
    wan = build.construct(WanConfig, section, "video")
    inputs = (
        jax.ShapeDtypeStruct((1, *wan.patch, wan.in_channels), jnp.dtype(wan.dtype)),
        jax.ShapeDtypeStruct((1,), jnp.float32),
        jax.ShapeDtypeStruct((1, 1, wan.text_width), jnp.dtype(wan.dtype)),
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    boxed = jax.eval_shape(lambda key, x: WanDiT(wan).init(key, *x)["params"], key, inputs)
    boxed = {"video": boxed}
    return nn.meta.unbox(boxed), param_shardings(boxed, mesh)


def make(kind: Kind, shapes: Any, shardings: Any, mesh: Mesh) -> optax.GradientTransformation:
    """The optimizer for parameters of these shapes in these places.

    Raises:
      ValueError: unknown kind.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"optimizer {kind!r}: unknown; use one of {get_args(Kind)}")
    if kind == "optax_muon":
        return optax.contrib.muon(
            RATE,
            beta=BETA,
            weight_decay=DECAY,
            adam_weight_decay=DECAY,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=_dimension_numbers(shapes),
        )
    return make_optimizer(
        build.LABELS,
        schedule=warmup_constant(0),
        learning_rate=RATE,
        algorithm=kind,
        matrix_axes=WHOLE,
        weight_decay=DECAY,
        clip_norm=None,
        muon_beta=BETA,
        muon_compute_dtype=jnp.bfloat16,
        mesh=mesh,
        specs=shardings,
    )


def _dimension_numbers(shapes: Any) -> Any:
    """Our labels and axes in optax's words; None is Adam."""

    def numbers(leaf: Any, label: str, axes: MatrixAxes) -> MuonDimensionNumbers | None:
        if label != "muon":
            return None
        _, rows, cols = axes.resolve(leaf.ndim)
        return MuonDimensionNumbers(rows, cols)

    return jax.tree.map(
        numbers, shapes, match_rules(build.LABELS, shapes), match_rules(WHOLE, shapes)
    )


def update_program(
    optimizer: optax.GradientTransformation, shapes: Any, shardings: Any, mesh: Mesh
) -> aot.Program:
    """(parameters, state, gradients) -> (parameters, state), all in place."""
    params = shaped(shapes, shardings)
    travelling = partial(optax.tree_utils.tree_cast, dtype=jnp.bfloat16)
    grads = shaped(jax.eval_shape(travelling, shapes), shardings)
    places = optimizer_shardings(optimizer, shapes, shardings, mesh)
    state = shaped(jax.eval_shape(optimizer.init, shapes), places)

    def update(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, new = optimizer.update(grads, state, params)
        keep = partial(jax.tree.map, lambda x, p: jax.lax.with_sharding_constraint(x, p))
        return keep(optax.apply_updates(params, updates), shardings), keep(new, places)

    return aot.Program(function=update, arguments=(params, state, grads), donated=(0, 1, 2))


def measure_optimizer(
    config: ConfigDict, topology: str, optimizer: Kind, *, quick: bool = False
) -> dict[str, Any]:
    """Compiles one optimizer's update for a topology.

    Args:
      config: `video` and `mesh` are read.
      topology: such as "v5p:4x4x4".
      optimizer: which.
      quick: lets the compiler try less; see `aot.compile_program`.

    Returns:
      Figures per chip, JSON values. `optimizer_flops_per_chip` is what XLA
      counts: of branches that depend on the chip it takes the largest, so it is
      the busiest chip's; the program has no loops, which it would count once.
      `optimizer_flops_ideal` is the Newton-Schulz work of all matrices over the
      number of chips, in the cheaper dense route; `..._planned` is what our plan
      gives the busiest chip.

    Raises:
      AotError: libtpu is missing or does not know the topology, or the program
        does not fit a chip.
      ValueError: unknown optimizer.
    """
    mesh = make_mesh(config.mesh.to_dict(), aot.topology_devices(topology))
    shapes, shardings = wan_shapes(config, mesh)
    transformation = make(optimizer, shapes, shardings, mesh)
    with activate(mesh):
        program = update_program(transformation, shapes, shardings, mesh)
    figures = aot.compile_program(program, mesh, quick=quick)
    labels = match_rules(build.LABELS, shapes)
    matrices = jax.tree.map(lambda x, of: x if of == "muon" else None, shapes, labels)
    plan, _ = muon_plan(matrices, WHOLE, mesh=mesh, specs=shardings)
    return {
        "topology": topology,
        "chips": figures.chips,
        "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
        "optimizer": optimizer,
        "matrices": _matrices(matrices),
        "optimizer_flops_per_chip": figures.flops,
        "optimizer_flops_planned": plan.load,
        "optimizer_flops_ideal": plan.mean_load,
        "optimizer_collective_bytes": figures.collectives,
        "optimizer_temp_bytes": figures.temporaries,
        "hbm_bytes_per_chip": figures.hbm,
        "kernels": figures.kernels,
        "compile_seconds": round(figures.compile_seconds, 1),
        "fits": figures.fits,
    }


def _matrices(shapes: Any) -> int:
    """How many matrices a tree of parameters holds under WHOLE."""
    sizes = jax.tree.map(
        lambda x, axes: x.size // (axes.matrix_shape(x.shape)[0] * axes.matrix_shape(x.shape)[1]),
        shapes,
        match_rules(WHOLE, shapes),
    )
    return sum(jax.tree.leaves(sizes))
