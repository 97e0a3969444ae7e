"""Muon: momentum, orthogonalised, as an optax `GradientTransformation`.

For every parameter seen as a matrix (Jordan et al. 2024; Nesterov form):

    m_t = beta m_{t-1} + (1 - beta) g_t
    n_t = beta m_t / (1 - beta^{t+1}) + (1 - beta) g_t / (1 - beta^t)
    u_t = r sqrt(max(rows, cols)) NewtonSchulz(n_t)

The factor of u_t (Liu et al. 2025, Moonlight) gives the update of an orthogonal
matrix a root mean square of r whatever its shape. With r = 0.2 it is as large
as a typical AdamW update, so one learning rate and decay suit both.

Which axes form the matrix is data (`MatrixAxes`): layers stacked by a scan are
batch axes, and a kernel [layers, in, heads, head_dim] is orthogonalised per
layer, either whole (in x heads*head_dim) or per head (in x head_dim).
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from wallwm_jax.optim.newton_schulz import STANDARD, Coefficients, newton_schulz
from wallwm_jax.optim.rules import Rules, match_rules


@dataclasses.dataclass(frozen=True)
class MatrixAxes:
    """Which axes of a parameter are the rows and columns of its matrix.

    All remaining axes are batch: one matrix per index. Negative numbers count
    from the end, so that one rule serves a kernel with and without a leading
    axis of scanned layers. Examples, for [layers, in, heads, head_dim]:

      MatrixAxes(rows=(-3,), cols=(-2, -1))   whole: in x (heads * head_dim)
      MatrixAxes(rows=(-3,), cols=(-1,))      per head: in x head_dim
    """

    rows: tuple[int, ...] = (-2,)
    cols: tuple[int, ...] = (-1,)

    def resolve(self, ndim: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Non-negative (batch, rows, cols) axes of a parameter with `ndim` axes.

        Raises:
          ValueError: an axis is out of range, or named twice, or none is named.
        """
        named = self.rows + self.cols
        if any(not -ndim <= axis < ndim for axis in named):
            raise ValueError(f"{self}: out of range for {ndim} axes; use AdamW or other axes")
        positive = [axis % ndim for axis in named]
        if len(set(positive)) < len(positive) or not self.rows or not self.cols:
            raise ValueError(f"{self}: rows and cols must be disjoint and not empty ({ndim} axes)")
        batch = tuple(axis for axis in range(ndim) if axis not in positive)
        return batch, tuple(positive[: len(self.rows)]), tuple(positive[len(self.rows) :])

    def matrix_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """(rows, cols) of one matrix of a parameter with this shape."""
        _, rows, cols = self.resolve(len(shape))
        return math.prod(shape[axis] for axis in rows), math.prod(shape[axis] for axis in cols)


LAST_TWO: Rules[MatrixAxes] = ((".*", MatrixAxes()),)
"""Rules for trees whose Muon leaves are all [in, out] or [layers, in, out]."""


def to_matrices(x: Float[Array, "..."], axes: MatrixAxes) -> Float[Array, "*batch m n"]:
    """Transposes and folds a parameter into a batch of matrices; see `from_matrices`."""
    batch, rows, cols = axes.resolve(x.ndim)
    moved = x.transpose(batch + rows + cols)
    return moved.reshape(tuple(x.shape[axis] for axis in batch) + axes.matrix_shape(x.shape))


def from_matrices(
    matrices: Float[Array, "*batch m n"], axes: MatrixAxes, shape: tuple[int, ...]
) -> Float[Array, "..."]:
    """Inverse of `to_matrices` for a parameter of this shape."""
    batch, rows, cols = axes.resolve(len(shape))
    order = batch + rows + cols
    moved = matrices.reshape(tuple(shape[axis] for axis in order))
    return moved.transpose(tuple(order.index(axis) for axis in range(len(shape))))


class MuonState(NamedTuple):
    """State of `scale_by_muon`: one momentum buffer per parameter."""

    count: Int[Array, ""]  # updates so far, for the bias correction
    mu: optax.Updates  # momentum m_t, same shapes (and sharding) as the parameters


def _momentum(grads: Any, state: MuonState, beta: float, nesterov: bool) -> tuple[Any, Any]:
    """(m_t, the direction to orthogonalise), both float trees like `grads`."""
    count = optax.safe_increment(state.count)
    mu = jax.tree.map(lambda m, g: beta * m + (1 - beta) * g, state.mu, grads)
    if not nesterov:
        return mu, mu  # Newton-Schulz ignores scale: no bias correction needed
    # In the Nesterov form two differently corrected terms are added, so the
    # correction decides their ratio (it matters for the first few updates).
    ahead = 1 - beta ** optax.safe_increment(count).astype(jnp.float32)
    now = 1 - beta ** count.astype(jnp.float32)
    return mu, jax.tree.map(lambda m, g: beta * m / ahead + (1 - beta) * g / now, mu, grads)


def scale_by_muon(
    matrix_axes: Rules[MatrixAxes] = LAST_TWO,
    *,
    beta: float = 0.95,
    nesterov: bool = True,
    rms: float = 0.2,
    coefficients: Coefficients = STANDARD,
    compute_dtype: DTypeLike | None = None,
    momentum_dtype: DTypeLike | None = None,
) -> optax.GradientTransformation:
    """Rescales gradients by Muon; chain with decay and a learning rate.

    Args:
      matrix_axes: ordered `(regex, MatrixAxes)` over parameter paths; must
        cover every leaf that reaches this transformation.
      beta: momentum decay.
      nesterov: look one step ahead (equations in the module docstring).
      rms: root mean square r of the update; 0.2 matches AdamW.
      coefficients: Newton-Schulz steps, see `newton_schulz`.
      compute_dtype: dtype of the Newton-Schulz products; None keeps the
        gradients' dtype.
      momentum_dtype: dtype of the momentum buffers; None keeps the parameters'.

    Returns:
      A `GradientTransformation` with `MuonState`. Its buffers are
      `zeros_like` the parameters, so they inherit their sharding.

    Raises:
      ValueError: (on init and update) a leaf that no rule covers, or axes that
        do not fit its shape; the message names the path.
    """

    def axes_of(tree):
        return match_rules(matrix_axes, tree, what="Muon matrix axes")

    def init_fn(params):
        axes = axes_of(params)
        jax.tree_util.tree_map_with_path(_check_axes, params, axes)
        mu = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=momentum_dtype), params)
        return MuonState(count=jnp.zeros([], jnp.int32), mu=mu)

    def orthogonalise(direction, axes):
        rows, cols = axes.matrix_shape(direction.shape)
        matrices = to_matrices(direction, axes)
        matrices = newton_schulz(matrices, coefficients, compute_dtype=compute_dtype)
        return from_matrices(matrices, axes, direction.shape) * (rms * math.sqrt(max(rows, cols)))

    def update_fn(updates, state, params=None):
        del params
        mu, direction = _momentum(updates, state, beta, nesterov)
        scaled = jax.tree.map(orthogonalise, direction, axes_of(updates))
        # Kept in the dtype chosen at init, so that a jitted step sees one state type.
        mu = jax.tree.map(lambda new, old: new.astype(old.dtype), mu, state.mu)
        return scaled, MuonState(count=optax.safe_increment(state.count), mu=mu)

    return optax.GradientTransformation(init_fn, update_fn)


def _check_axes(key_path: tuple[Any, ...], leaf: Any, axes: MatrixAxes) -> None:
    """Raises ValueError naming the path when `axes` do not fit the leaf."""
    try:
        axes.resolve(len(leaf.shape))
    except ValueError as error:
        path = jax.tree_util.keystr(key_path, simple=True, separator="/")
        raise ValueError(f"Muon matrix axes of {path} {tuple(leaf.shape)}: {error}") from None
