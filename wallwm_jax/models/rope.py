"""Rotary position embedding: 3-D as in Wan, 1-D for actions, and Camera RoPE.

A rotary embedding turns each pair of channels (2i, 2i+1) of a query or key by
an angle; the product of a turned query and a turned key depends on the
difference of their angles only. Pairs are split over the axes of the grid:

    Wan (section 2):   (f, h, w)         inside one view
    Camera RoPE:       (f, h, w, view)   between views

The view's angles are a learnable table shared by all layers: no calibration
enters, and adding a camera adds a row.

Letters: F latent frames, h w token grid, V views, P channel pairs, T tokens.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from wallwm_jax.models.attention import surroundings

THETA = 10000.0


def turns(pairs: int, theta: float = THETA) -> UInt32[np.ndarray, "P"]:
    """Geometric bank theta^(-i/P), i in 0..P-1, radians per position, in 2^-32 turns."""
    radians = theta ** (-np.arange(pairs, dtype=np.float64) / max(pairs, 1))
    return np.round(radians / (2 * np.pi) * 2**32).astype(np.uint32)


def grid_pairs(pairs: int) -> tuple[int, int, int]:
    """Pairs given to (f, h, w): Wan's split, a third each, the rest to time."""
    spatial = pairs // 3
    return pairs - 2 * spatial, spatial, spatial


def camera_pairs(pairs: int) -> tuple[int, int, int, int]:
    """Pairs given to (f, h, w, view): a quarter to the view, the rest as in Wan."""
    view = pairs // 4
    return *grid_pairs(pairs - view), view


def axis_angles(positions: Int[Array, "*T"], pairs: int) -> Float[Array, "*T P"]:
    """Angles of one axis, in [-pi, pi): position times each frequency of its bank.

    The product is taken in turns, in 32-bit fixed point: an integer overflows
    exactly where a turn is complete, so a position of a thousand is as accurate
    as one of ten (a float32 product would lose a digit for each), and any
    integer is a position, negative ones too.
    """
    whole = jax.lax.bitcast_convert_type(positions.astype(jnp.int32), jnp.uint32)
    product = jax.lax.bitcast_convert_type(whole[..., None] * turns(pairs), jnp.int32)
    return product.astype(jnp.float32) * (2 * np.pi / 2**32)


def grid_angles(
    frame_index: Int[Array, "B F"], grid: tuple[int, int], pairs: int
) -> Float[Array, "B F S P"]:
    """Angles of every token of a latent video over (f, h, w), S = h*w.

    `frame_index` restarts at 0 for each packed event, so a token's angle does
    not depend on where in the sequence its event was packed.
    """
    h, w = grid
    pf, ph, pw = grid_pairs(pairs)
    shape = (*frame_index.shape, h, w)
    f_part = jnp.broadcast_to(axis_angles(frame_index, pf)[:, :, None, None], (*shape, pf))
    h_part = jnp.broadcast_to(axis_angles(jnp.arange(h), ph)[:, None], (*shape, ph))
    w_part = jnp.broadcast_to(axis_angles(jnp.arange(w), pw), (*shape, pw))
    angles = jnp.concatenate([f_part, h_part, w_part], axis=-1)
    return angles.reshape(*frame_index.shape, h * w, pairs)


def camera_angles(
    frame_index: Int[Array, "B F"],
    grid: tuple[int, int],
    view_table: Float[Array, "V Pv"],
    pairs: int,
) -> Float[Array, "B F V S P"]:
    """Angles of the cross-view branch over (f, h, w, view) (Camera RoPE).

    Args:
      frame_index: latent frame of each position.
      grid: (h, w) tokens of a latent frame.
      view_table: learnable angles, `camera_pairs(pairs)[3]` per view.
      pairs: channel pairs of a head.
    """
    views, view_pairs = view_table.shape
    inner = grid_angles(frame_index, grid, pairs - view_pairs)[:, :, None]
    shape = (*frame_index.shape, views, grid[0] * grid[1])
    inner = jnp.broadcast_to(inner, (*shape, pairs - view_pairs))
    outer = jnp.broadcast_to(view_table[:, None], (*shape, view_pairs))
    return jnp.concatenate([inner, outer], axis=-1)


def rotate(x: Float[Array, "B T N H"], angles: Float[Array, "B T P"]) -> Float[Array, "B T N H"]:
    """Turns each pair of channels (2i, 2i+1) of every head by its angle.

    x cos + swap(x) sin, where swap((a, b)) = (-b, a). How a pair is swapped
    depends on the machine (the values do not): see `swap_by_reversal` and
    `swap_by_product`.
    """
    swap = swap_by_product if surroundings()[0] == "tpu" else swap_by_reversal
    cos, sin = (jnp.repeat(f(angles), 2, axis=-1)[:, :, None] for f in (jnp.cos, jnp.sin))
    return (x.astype(jnp.float32) * cos + swap(x) * sin).astype(x.dtype)


def swap_by_reversal(x: Float[Array, "*B H"]) -> Float[Array, "*B H"]:
    """(a, b) -> (-b, a) for each pair of channels, in float32.

    A whole-array reversal of the pairs: strided slices would have a slow
    backward pass.
    """
    pairs = x.reshape(*x.shape[:-1], -1, 2).astype(jnp.float32)
    return (pairs[..., ::-1] * jnp.array([-1.0, 1.0])).reshape(x.shape)


def swap_by_product(x: Float[Array, "*B H"]) -> Float[Array, "*B H"]:
    """The same as a product with a matrix of 0, 1 and -1; exact.

    A TPU keeps channels in lanes. A reversal of pairs there moves every query and
    key to another layout and back in float32 (of one projection with its
    derivative, libtpu plans 12 times the temporaries and twice the traffic); the
    matrix unit swaps them on the way. It costs 2 H operations per channel.
    """
    row = np.arange(x.shape[-1])
    matrix = np.zeros((len(row),) * 2, np.float32)
    matrix[row, row ^ 1] = np.where(row % 2 == 0, 1.0, -1.0)
    return jnp.einsum(
        "...h,hk->...k",
        x,
        jnp.asarray(matrix, x.dtype),
        precision=jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )
