"""Muon: momentum, orthogonalised, as an optax `GradientTransformation`.

For every parameter seen as a matrix (Jordan et al. 2024; Nesterov form):

    m_t = beta m_{t-1} + (1 - beta) g_t
    n_t = beta m_t / (1 - beta^{t+1}) + (1 - beta) g_t / (1 - beta^t)
    u_t = r sqrt(max(rows, cols)) NewtonSchulz(n_t)

The factor of u_t (Liu et al. 2025, Moonlight) gives the update of an orthogonal
matrix a root mean square of r whatever its shape. With r = 0.2 it is as large
as a typical AdamW update, so one learning rate and decay suit both.

Which axes form the matrix is data (`matrices`): layers stacked by a scan are
batch axes, and a kernel [layers, in, heads, head_dim] is orthogonalised per
layer, either whole (in x heads*head_dim) or per head (in x head_dim).

On a mesh every matrix is orthogonalised once, by one device that is sent its
slices: `plan` says which, `exchange` does it. Momentum and update stay where
the parameter lies.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Int

from wallwm_jax.optim.exchange import orthogonalise_all
from wallwm_jax.optim.matrices import LAST_TWO, MatrixAxes
from wallwm_jax.optim.newton_schulz import (
    STANDARD,
    Coefficients,
    newton_schulz,
    newton_schulz_flops,
)
from wallwm_jax.optim.plan import Leaf, Plan, PlanError, make_plan
from wallwm_jax.optim.rules import Rules, match_rules, path_name
from wallwm_jax.optim.symmetric import ProductChoice, pick_product

Specs = Callable[[str, Any], PartitionSpec] | Any
"""Where parameters lie: (path, leaf) -> PartitionSpec, or a tree of PartitionSpecs
or NamedShardings that has (at least) the leaves that Muon gets."""


class MuonState(NamedTuple):
    """State of `scale_by_muon`: one momentum buffer per parameter."""

    count: Int[Array, ""]  # updates so far, for the bias correction
    mu: optax.Updates  # momentum m_t, same shapes (and sharding) as the parameters


def _momentum(grads: Any, state: MuonState, beta: float) -> Any:
    """m_t, a float32 tree like `grads`."""
    wide = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)  # noqa: E731
    return jax.tree.map(lambda m, g: beta * m + (1 - beta) * g, wide(state.mu), wide(grads))


def _direction(state: MuonState, beta: float, nesterov: bool) -> Callable[[Array, Array], Array]:
    """(m_t, g_t) -> what is orthogonalised."""
    if not nesterov:
        return lambda m, g: m  # Newton-Schulz ignores scale: no bias correction needed
    # In the Nesterov form two differently corrected terms are added, so the
    # correction decides their ratio (it matters for the first few updates).
    count = optax.safe_increment(state.count)
    ahead = 1 - beta ** optax.safe_increment(count).astype(jnp.float32)
    now = 1 - beta ** count.astype(jnp.float32)
    return lambda m, g: beta * m / ahead + (1 - beta) * g.astype(jnp.float32) / now


def muon_plan(
    tree: Any,
    matrix_axes: Rules[MatrixAxes] = LAST_TWO,
    *,
    mesh: Mesh | None = None,
    specs: Specs | None = None,
    coefficients: Coefficients = STANDARD,
) -> tuple[Plan, list[Leaf]]:
    """Who orthogonalises what of a tree of parameters (or their shapes).

    Args:
      tree: what reaches `scale_by_muon`, without the leaves of other optimizers.
      matrix_axes, mesh, specs: as there.
      coefficients: of Newton-Schulz; they decide what a matrix costs.

    Raises:
      PlanError: a mesh without specs, or a parameter that has none.
      ValueError: uncovered paths, or axes that do not fit.
    """
    axes = match_rules(matrix_axes, tree, what="Muon matrix axes")
    jax.tree_util.tree_map_with_path(_check_axes, tree, axes)
    spread = mesh is not None and mesh.size > 1
    if spread and specs is None:
        raise PlanError("Muon on a mesh of several devices needs the parameters' specs; pass specs")
    spec_of = _spec_lookup(specs) if spread else lambda path, leaf: PartitionSpec()
    leaves = [
        Leaf(path_name(path), tuple(x.shape), of, spec_of(path_name(path), x))
        for (path, x), of in zip(
            jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(axes), strict=True
        )
    ]
    cost = lambda m, n: min(newton_schulz_flops(m, n, coefficients).values())  # noqa: E731
    return make_plan(leaves, dict(mesh.shape) if spread else {}, cost), leaves


def _spec_lookup(specs: Specs) -> Callable[[str, Any], PartitionSpec]:
    """`specs` as a function, whichever form it has."""
    if callable(specs):
        return specs
    is_place = lambda x: isinstance(x, PartitionSpec | NamedSharding)  # noqa: E731
    known = {
        path_name(path): place.spec if isinstance(place, NamedSharding) else place
        for path, place in jax.tree_util.tree_leaves_with_path(specs, is_leaf=is_place)
    }

    def find(path: str, leaf: Any) -> PartitionSpec:
        if path not in known:
            raise PlanError(
                f"Muon: no spec for parameter {path} {tuple(leaf.shape)}; add it to specs"
            )
        return known[path]

    return find


def scale_by_muon(
    matrix_axes: Rules[MatrixAxes] = LAST_TWO,
    *,
    beta: float = 0.95,
    nesterov: bool = True,
    rms: float = 0.2,
    coefficients: Coefficients = STANDARD,
    compute_dtype: DTypeLike | None = None,
    momentum_dtype: DTypeLike | None = None,
    product: ProductChoice = "auto",
    mesh: Mesh | None = None,
    specs: Specs | None = None,
) -> optax.GradientTransformation:
    """Rescales gradients by Muon; chain with decay and a learning rate.

    Args:
      matrix_axes: ordered `(regex, MatrixAxes)` over parameter paths; must
        cover every leaf that reaches this transformation.
      beta: momentum decay.
      nesterov: look one step ahead (equations in the module docstring).
      rms: root mean square r of the update; 0.2 matches AdamW.
      coefficients: Newton-Schulz steps, see `newton_schulz`.
      compute_dtype: dtype of the Newton-Schulz products and of what devices
        send each other; None is float32.
      momentum_dtype: dtype of the momentum buffers; None keeps the parameters'.
      product: how x x^T is computed, see `symmetric`.
      mesh: the run's mesh; None: all is on one device.
      specs: where the parameters lie on it.

    Returns:
      A `GradientTransformation` with `MuonState`. Its buffers are
      `zeros_like` the parameters, so they inherit their sharding. Updates are
      float32.

    Raises:
      ValueError: (on init and update) a leaf that no rule covers, or axes that
        do not fit its shape; the message names the path.
      PlanError: (on init and update) a mesh without specs, or a leaf that has none.
    """
    place = dict(mesh=mesh, specs=specs, coefficients=coefficients)

    def init_fn(params):
        muon_plan(params, matrix_axes, **place)  # refuses what does not fit
        mu = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=momentum_dtype), params)
        return MuonState(count=jnp.zeros([], jnp.int32), mu=mu)

    def orthogonalise(x):
        platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
        return newton_schulz(x, coefficients, product=pick_product(product, platform))

    def update_fn(updates, state, params=None):
        del params
        mu = _momentum(updates, state, beta)
        plan, leaves = muon_plan(updates, matrix_axes, **place)
        scaled = orthogonalise_all(
            plan,
            leaves,
            list(zip(jax.tree.leaves(mu), jax.tree.leaves(updates), strict=True)),
            orthogonalise,
            direction=_direction(state, beta, nesterov),
            mesh=mesh,
            dtype=compute_dtype or jnp.float32,
            scale=lambda rows, cols: rms * max(rows, cols) ** 0.5,
        )
        # Kept in the dtype chosen at init, so that a jitted step sees one state type.
        mu = jax.tree.map(lambda new, old: new.astype(old.dtype), mu, state.mu)
        updates = jax.tree.unflatten(jax.tree.structure(updates), scaled)
        return updates, MuonState(count=optax.safe_increment(state.count), mu=mu)

    return optax.GradientTransformation(init_fn, update_fn)


def _check_axes(key_path: tuple[Any, ...], leaf: Any, axes: MatrixAxes) -> None:
    """Raises ValueError naming the path when `axes` do not fit the leaf."""
    try:
        axes.matrix_shape(tuple(leaf.shape))
    except ValueError as error:
        path = jax.tree_util.keystr(key_path, simple=True, separator="/")
        raise ValueError(f"Muon matrix axes of {path} {tuple(leaf.shape)}: {error}") from None
