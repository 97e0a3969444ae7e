"""A clip through a codec piece by piece: chunks of time, tiles of the picture.

Both are loops inside the program, so that its memory is that of one piece
beside the clip that comes in and the one that goes out.

Letters: B clips, T U frames, H W h w pixels, C O channels.
"""

from collections.abc import Callable, Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wallwm_jax.models.wan_vae_layers import Past

Step = Callable[[nn.Module, Array, Past], tuple[Array, Past]]
"""(module, next frames, past) -> (what they become, past)."""

SHARED = dict(variable_broadcast="params", split_rngs={"params": False})
"""How the loops lift a module: every round reads the same parameters."""


def stream(
    module: nn.Module,
    step: Step,
    x: Float[Array, "B T H W C"],
    first: int,
    chunk: int,
    out_chunk: int,
) -> Float[Array, "B U h w O"]:
    """Runs `step` over a clip in time.

    Args:
      module: handed to `step`; owns the parameters.
      step: one chunk's work; None as its past opens a clip.
      x: the clip.
      first: frames of the first chunk; what is left is whole chunks.
      chunk: frames of each further one.
      out_chunk: frames that `step` makes of those.
    """
    y, past = step(module, x[:, :first], None)
    rounds, begun = (x.shape[1] - first) // chunk, y.shape[1]
    if not rounds:
        return y
    # Results are written to their place: stacked ones would need a transposed copy.
    out = jnp.zeros((y.shape[0], begun + rounds * out_chunk, *y.shape[2:]), y.dtype)
    out = jax.lax.dynamic_update_slice_in_dim(out, y, 0, axis=1)

    def body(module: nn.Module, carry: tuple[Past, Array], i: Array) -> tuple[tuple, None]:
        past, out = carry
        frames = jax.lax.dynamic_slice_in_dim(x, first + i * chunk, chunk, axis=1)
        y, past = step(module, frames, past)
        out = jax.lax.dynamic_update_slice_in_dim(out, y, begun + i * out_chunk, axis=1)
        return (past, out), None

    (_, out), _ = nn.scan(body, **SHARED)(module, (past, out), jnp.arange(rounds))
    return out


def _places(length: int, tile: int, stride: int) -> Iterator[tuple[int, int]]:
    """(begin, length) of the tiles along one side; the last ones end with it."""
    return ((begin, min(tile, length - begin)) for begin in range(0, length, stride))


def _blend(before: Array, tile: Array, extent: int, axis: int) -> Array:
    """Fades from the end of `before` into the beginning of `tile`."""
    extent = min(before.shape[axis], tile.shape[axis], extent)
    if extent <= 0:
        return tile
    ramp = jnp.arange(extent, dtype=tile.dtype) / extent
    ramp = jnp.expand_dims(ramp, tuple(a for a in range(tile.ndim) if a != axis))
    fade_out = jax.lax.slice_in_dim(before, before.shape[axis] - extent, None, axis=axis)
    fade_in = jax.lax.slice_in_dim(tile, 0, extent, axis=axis)
    rest = jax.lax.slice_in_dim(tile, extent, None, axis=axis)
    return jnp.concatenate([fade_out * (1 - ramp) + fade_in * ramp, rest], axis=axis)


def in_tiles(
    module: nn.Module,
    run: Callable[[nn.Module, Array], Array],
    x: Float[Array, "B T H W C"],
    tile: tuple[int, int],
    stride: tuple[int, int],
    grown: Callable[[int], int],
) -> Float[Array, "B U h w O"]:
    """Runs `run` over overlapping tiles of the picture and fades each into the next.

    Tiles at the far sides may be smaller; tiles of one size share one loop.

    Args:
      module: handed to `run`; owns the parameters.
      run: a whole clip's work on one tile.
      x: the clip.
      tile, stride: rows and columns of a tile and between two tiles.
      grown: rows (or columns) of the input -> of the result.
    """
    rows, columns = (
        list(_places(x.shape[axis], tile[i], stride[i])) for i, axis in enumerate((2, 3))
    )
    done: dict[tuple[int, int], Array] = {}
    for height, width in sorted({(h, w) for _, h in rows for _, w in columns}):
        places = [(i, j) for i, h in rows for j, w in columns if (h, w) == (height, width)]

        def body(module: nn.Module, carry: None, place: Array) -> tuple[None, Array]:
            begin = (0, 0, place[0], place[1], 0)
            size = (*x.shape[:2], height, width, x.shape[-1])  # noqa: B023
            return carry, run(module, jax.lax.dynamic_slice(x, begin, size))

        _, results = nn.scan(body, **SHARED)(module, None, np.asarray(places, np.int32))
        done |= dict(zip(places, results, strict=True))
    step = tuple(map(grown, stride))
    overlap = tuple(grown(t) - s for t, s in zip(tile, step, strict=True))
    above: list[Array] = []
    strips = []
    for i, _ in rows:
        row: list[Array] = []
        for k, (j, _) in enumerate(columns):
            piece = done[i, j]
            if above:
                piece = _blend(above[k], piece, overlap[0], axis=2)
            if row:
                piece = _blend(row[-1], piece, overlap[1], axis=3)
            row.append(piece)
        strips.append(jnp.concatenate([p[:, :, : step[0], : step[1]] for p in row], axis=3))
        above = row
    return jnp.concatenate(strips, axis=2)
