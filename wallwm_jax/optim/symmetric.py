"""x x^T at little more than half the work, on TPU.

The product is cut into square tiles; a grid runs over the tiles on and below the
diagonal alone (their row and column numbers are prefetched as data) and, inside
a tile, over blocks of the common axis, which are summed in float32. The rest is
mirrored. With t tiles a side that is (t + 1) / (2 t) of the dense product.
"""

import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from wallwm_jax.optim.newton_schulz import Product, dense_product

ProductChoice = Literal["auto", "xla", "pallas"]

TILES = (512, 256, 128)
"""Sides of a tile, best first: larger ones read less, and 512 x 512 floats and
four blocks of input fit a TPU's vector memory several times over."""

LEAST_ROWS = 1024
"""From this size on "auto" takes the kernel: two tiles of 512 save a quarter of
the product, which below it is too small to matter. Not timed on a TPU."""


def tile_of(size: int) -> int | None:
    """The side of the tiles for an axis of this size, None if none divides it."""
    return next((tile for tile in TILES if size % tile == 0), None)


def pick_product(choice: str, platform: str) -> Product:
    """How x x^T is computed.

    Args:
      choice: "xla" everywhere dense; "pallas" the kernel, interpreted where
        there is no TPU; "auto" the kernel on TPU where the sizes divide into
        tiles and have LEAST_ROWS, in bfloat16; dense elsewhere.
      platform: of the devices that will run it.

    Raises:
      ValueError: unknown choice.
    """
    if choice not in get_args(ProductChoice):
        raise ValueError(
            f"symmetric product {choice!r}: unknown; use one of {get_args(ProductChoice)}"
        )
    if choice == "pallas":
        return functools.partial(symmetric_product, interpret=platform != "tpu")
    return _where_it_pays if choice == "auto" and platform == "tpu" else dense_product


def _where_it_pays(x: Array) -> Array:
    """The kernel where it saves work, the dense product elsewhere."""
    rows, common = x.shape[-2:]
    fits = tile_of(rows) and tile_of(common) and x.dtype == jnp.bfloat16
    return symmetric_product(x) if fits and rows >= LEAST_ROWS else dense_product(x)


def symmetric_product(
    x: Float[Array, "*batch m k"], *, interpret: bool = False
) -> Float[Array, "*batch m m"]:
    """x x^T in float32.

    Args:
      x: m and k divide by 128.
      interpret: runs the kernel as plain operations, on any backend.

    Raises:
      ValueError: sizes that do not divide into tiles.
    """
    *batch, rows, common = x.shape
    tile, block = tile_of(rows), tile_of(common)
    if tile is None or block is None:
        raise ValueError(f"symmetric product of {rows} x {common}: both must divide by {TILES[-1]}")
    lower = _lower_tiles(x.reshape(-1, rows, common), tile, block, interpret)
    # Counted where it is needed: a constant of that size would be kept in memory.
    number = lambda axis: lax.broadcasted_iota(jnp.int32, (rows, rows), axis) // tile  # noqa: E731
    whole = jnp.where(number(0) >= number(1), lower, jnp.swapaxes(lower, -2, -1))
    return whole.reshape(*batch, rows, rows)


def _lower_tiles(
    x: Float[Array, "b m k"], tile: int, block: int, interpret: bool
) -> Float[Array, "b m m"]:
    """The tiles on and below the diagonal; what is above was never written."""
    batch, rows, common = x.shape
    tiles, blocks = np.tril_indices(rows // tile), common // block
    count = len(tiles[0])
    left = lambda b, t, k, i, j: (b, i[t], k)  # noqa: E731
    right = lambda b, t, k, i, j: (b, j[t], k)  # noqa: E731
    out = lambda b, t, k, i, j: (b, i[t], j[t])  # noqa: E731
    call = pl.pallas_call(
        _kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(batch, count, blocks),
            in_specs=[
                pl.BlockSpec((None, tile, block), left),
                pl.BlockSpec((None, tile, block), right),
            ],
            out_specs=pl.BlockSpec((None, tile, tile), out),
        ),
        out_shape=jax.ShapeDtypeStruct((batch, rows, rows), jnp.float32),
        # XLA counts of a kernel what it is told here.
        cost_estimate=pl.CostEstimate(
            flops=2 * batch * count * tile * tile * common,
            bytes_accessed=batch
            * count
            * tile
            * (2 * common * x.dtype.itemsize + tile * jnp.dtype(jnp.float32).itemsize),
            transcendentals=0,
        ),
        interpret=interpret,
        name="symmetric_product",
    )
    return call(*(jnp.asarray(side, jnp.int32) for side in tiles), x, x)


def _kernel(_rows, _cols, x, y, out) -> None:  # references into vector memory
    """Adds one block of the common axis to one tile."""

    @pl.when(pl.program_id(2) == 0)
    def _start():
        out[...] = jnp.zeros_like(out)

    contract_last = (((1,), (1,)), ((), ()))
    out[...] += lax.dot_general(x[...], y[...], contract_last, preferred_element_type=jnp.float32)
