"""Tubes: a window of one view, withheld over a whole event (method section 2).

A k x k window of tokens of view v*, over all latent frames of the event, is
replaced by pure noise in the noisy input; the other views still see the place,
so the model has to carry content across views. Windows lie inside

    U = {u : exists u' of another view with M[u, u']}

with M the sight-cone mask: what no other view can see is not asked for. When
cameras move, a window has to be inside U on every frame of the event.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Int, Key, UInt32

Rng = Key[Array, ""] | UInt32[Array, "2"]


class Tube(NamedTuple):
    """Which tokens are withheld.

    Attributes:
      noise: replaced by pure noise in the noisy input; all False: no tube.
      hidden: masked in the conditioning channel y too; `noise` or nothing.
    """

    noise: Bool[Array, "v f h w"]
    hidden: Bool[Array, "v f h w"]


def seen_elsewhere(
    mask: Bool[Array, "*batch n n"], views: int, grid: tuple[int, int]
) -> Bool[Array, "*batch v h w"]:
    """The set U of a multi-view mask in (v h w) order (see `multi_view_mask`)."""
    h, w = grid
    pairs = rearrange(mask, "... (v a) (u b) -> ... v a u b", v=views, u=views)
    other = ~jnp.eye(views, dtype=bool)[:, None, :, None]
    return rearrange(jnp.any(pairs & other, axis=(-2, -1)), "... v (h w) -> ... v h w", h=h, w=w)


def _windows(inside: Bool[Array, "v h w"], size: int) -> Bool[Array, "v h w"]:
    """Top-left corners from which a size x size window lies wholly inside."""
    _, h, w = inside.shape
    padded = jnp.pad(inside, ((0, 0), (0, size), (0, size)))  # False beyond the image
    shifts = [padded[:, i : i + h, j : j + w] for i in range(size) for j in range(size)]
    return jnp.all(jnp.stack(shifts), axis=0)


def _choose(rng: Rng, allowed: Bool[Array, "n"]) -> Array:
    """An index uniform over the True entries (any index if there is none)."""
    return jax.random.categorical(rng, jnp.where(allowed, 0.0, -jnp.inf))


def sample_tube(
    rng: Rng,
    mask: Bool[Array, "f n n"],
    frames: Bool[Array, "f"],
    *,
    views: int,
    grid: tuple[int, int],
    sizes: tuple[int, int],
    probability: ArrayLike = 1.0,
    hide_probability: ArrayLike = 0.0,
) -> Tube:
    """Draws the tube of one event; vmap over events or examples.

    Size, view and place are drawn in this order, each uniformly over what is
    still possible: a size that fits nowhere is not drawn.

    Args:
      rng: one key.
      mask: multi-view mask per latent frame, (v h w) order.
      frames: the latent frames of this event (in a packed sequence: of others
        too, which the tube must not touch).
      views, grid: V and (h, w), V*h*w = n.
      sizes: (l_min, l_max), both included.
      probability: p_tube.
      hide_probability: p_tube_cond, given a tube.

    Returns:
      `Tube`. Empty with probability 1 - p_tube, or when no window fits.

    Raises:
      ValueError: sizes that no window of this grid can have.
    """
    low, high = sizes
    if not 1 <= low <= high <= min(grid):
        raise ValueError(
            f"tube sizes={sizes}: needs 1 <= l_min <= l_max <= {min(grid)} (grid {grid})"
        )
    keys = jax.random.split(rng, 5)
    inside = jnp.all(seen_elsewhere(mask, views, grid) | ~frames[:, None, None, None], axis=0)
    fits = jnp.stack([_windows(inside, size) for size in range(low, high + 1)])
    size = _choose(keys[0], jnp.any(fits, axis=(1, 2, 3)))
    view = _choose(keys[1], jnp.any(fits[size], axis=(1, 2)))
    top, left = jnp.divmod(_choose(keys[2], fits[size, view].reshape(-1)), grid[1])
    wanted = (jax.random.uniform(keys[3]) < probability) & jnp.any(fits)
    hide = jax.random.uniform(keys[4]) < hide_probability

    row, column = jnp.arange(grid[0])[:, None], jnp.arange(grid[1])
    extent = low + size
    window = (row >= top) & (row < top + extent) & (column >= left) & (column < left + extent)
    chosen = (jnp.arange(views) == view)[:, None, None, None]
    noise = chosen & frames[:, None, None] & window & wanted
    return Tube(noise, noise & hide)


def packed_tubes(
    rng: Rng,
    mask: Bool[Array, "f n n"],
    segment: Int[Array, "f"],
    events: int,
    **draw: Any,
) -> Tube:
    """The tubes of all events of one packed sequence, drawn apart; vmap over sequences.

    Args:
      rng: one key.
      mask: multi-view mask per latent frame, (v h w) order.
      segment: event 1..events of each latent frame, 0 in padding.
      events: event slots of the sequence.
      draw: the other arguments of `sample_tube`.
    """

    def one(key, slot):
        return sample_tube(key, mask, segment == slot + 1, **draw)

    tubes = jax.vmap(one)(jax.random.split(rng, events), jnp.arange(events))
    # Events share no frame, so their tubes lie side by side.
    return Tube(jnp.any(tubes.noise, axis=0), jnp.any(tubes.hidden, axis=0))


def to_cells(
    tokens: Bool[Array, "*batch h w"], patch: tuple[int, int]
) -> Bool[Array, "*batch H W"]:
    """A mask of tokens as a mask of the latent cells in their (ph, pw) patches."""
    return jnp.repeat(jnp.repeat(tokens, patch[0], axis=-2), patch[1], axis=-1)
