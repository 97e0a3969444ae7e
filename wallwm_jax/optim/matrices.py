"""Which axes of a parameter form the matrices that Muon orthogonalises, as data."""

import dataclasses
import math

from jaxtyping import Array, Float

from wallwm_jax.optim.rules import Rules


@dataclasses.dataclass(frozen=True)
class MatrixAxes:
    """Which axes of a parameter are the rows and columns of its matrix.

    All remaining axes are batch: one matrix per index. Negative numbers count
    from the end, so that one rule serves a kernel with and without a leading
    axis of scanned layers. Examples, for [layers, in, heads, head_dim]:

      MatrixAxes(rows=(-3,), cols=(-2, -1))   whole: in x (heads * head_dim)
      MatrixAxes(rows=(-3,), cols=(-1,))      per head: in x head_dim

    and for a fused [layers, in, 3 * out] of queries, keys and values:

      MatrixAxes(parts=((-1, 3),))            three matrices in x out

    Attributes:
      rows, cols: the axes, in the order in which they are folded.
      parts: (axis, number): the axis is that many equal blocks side by side,
        each a matrix of its own.
    """

    rows: tuple[int, ...] = (-2,)
    cols: tuple[int, ...] = (-1,)
    parts: tuple[tuple[int, int], ...] = ()

    def resolve(self, ndim: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Non-negative (batch, rows, cols) axes of a parameter with `ndim` axes.

        Raises:
          ValueError: an axis is out of range, or named twice, or none is named.
        """
        named = self.rows + self.cols
        if any(not -ndim <= axis < ndim for axis in named + tuple(a for a, _ in self.parts)):
            raise ValueError(f"{self}: out of range for {ndim} axes; use AdamW or other axes")
        positive = [axis % ndim for axis in named]
        if len(set(positive)) < len(positive) or not self.rows or not self.cols:
            raise ValueError(f"{self}: rows and cols must be disjoint and not empty ({ndim} axes)")
        batch = tuple(axis for axis in range(ndim) if axis not in positive)
        return batch, tuple(positive[: len(self.rows)]), tuple(positive[len(self.rows) :])

    def cut(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], "MatrixAxes", tuple[int, ...]]:
        """The same matrices without parts.

        Returns:
          The shape in which every axis of `parts` became two, (number, rest);
          axes of that shape, without parts and all non-negative; for every
          axis of that shape the one of `shape` it came from.

        Raises:
          ValueError: an axis does not divide into its parts; and as `resolve`.
        """
        ndim = len(shape)
        _, rows, cols = self.resolve(ndim)
        numbers = {axis % ndim: number for axis, number in self.parts}
        sizes, origin, kept = [], [], {}
        for axis, size in enumerate(shape):
            number = numbers.get(axis, 1)
            if size % number:
                raise ValueError(f"{self}: axis {axis} of {size} does not divide into {number}")
            sizes += [number, size // number] if axis in numbers else [size]
            origin += [axis, axis] if axis in numbers else [axis]
            kept[axis] = len(sizes) - 1
        axes = MatrixAxes(tuple(kept[a] for a in rows), tuple(kept[a] for a in cols))
        return tuple(sizes), axes, tuple(origin)

    def matrix_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """(rows, cols) of one matrix of a parameter with this shape."""
        shape, axes, _ = self.cut(shape)
        return tuple(math.prod(shape[axis] for axis in side) for side in (axes.rows, axes.cols))


LAST_TWO: Rules[MatrixAxes] = ((".*", MatrixAxes()),)
"""Rules for trees whose Muon leaves are all [in, out] or [layers, in, out]."""


def to_matrices(x: Float[Array, "..."], axes: MatrixAxes) -> Float[Array, "*batch m n"]:
    """Transposes and folds a parameter into a batch of matrices; see `from_matrices`."""
    folded = axes.matrix_shape(x.shape)
    shape, axes, _ = axes.cut(x.shape)
    batch, rows, cols = axes.resolve(len(shape))
    moved = x.reshape(shape).transpose(batch + rows + cols)
    return moved.reshape(tuple(shape[axis] for axis in batch) + folded)


def from_matrices(
    matrices: Float[Array, "*batch m n"], axes: MatrixAxes, shape: tuple[int, ...]
) -> Float[Array, "..."]:
    """Inverse of `to_matrices` for a parameter of this shape."""
    cut, axes, _ = axes.cut(shape)
    batch, rows, cols = axes.resolve(len(cut))
    order = batch + rows + cols
    moved = matrices.reshape(tuple(cut[axis] for axis in order))
    return moved.transpose(tuple(order.index(axis) for axis in range(len(cut)))).reshape(shape)
