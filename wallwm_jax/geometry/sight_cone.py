"""Sight cones: which tokens of different views can see the same place.

Token u is a cone: apex p0 = camera centre, unit axis d through the centre of its
patch, half-angle gamma, the smallest that contains the patch, times a scale
l >= 1. At depth t along the axis it is a ball around p(u,t) = p0 + t d with
radius t tan(l gamma) (sources differ between t gamma and t tan gamma; the
tangent is exact for the patch). With [dmin, dmax] the depths at which things
can be, two tokens are co-visible iff

    exists t1, t2 in [dmin, dmax]:  ||p(u,t1) - p(u',t2)|| <= t1 tan + t2 tan'    (1)

The WALL-WM paper tries one pair of depths, the closest approach of the axes
clamped to the band (t1 first, then t2 for it). That pair proves (1), but need
not be the one that does when (1) holds: radii grow with depth, so two cameras
side by side with parallel axes meet only far out, where their closest approach
is anywhere at all. And it depends on the order of u, u', and can turn false when
the band gets wider. (1) is what it stands for: symmetric, monotone in scale
and band, true wherever the paper's test is true in either order, and true
whenever a point lies in both cones.

(1) has a closed form. The gap

    f(t1, t2) = ||p(u,t1) - p(u',t2)|| - t1 tan - t2 tan'                         (2)

is convex (a norm of an affine map minus a linear one), so over the square of
depths its minimum is its stationary point, if that lies inside, or on one of
the four sides, where it is one-dimensional. Near-parallel axes need no special
case: a stationary point exists only for axes whose angle exceeds about the two
half-angles together, and there its equations are well conditioned.
"""

from typing import NamedTuple

import jax.numpy as jnp
from einops import rearrange
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from wallwm_jax.geometry.cameras import Cameras, centre, rays

Grid = tuple[int, int]  # tokens (h, w) over the image
Band = tuple[float, float]  # depths (dmin, dmax), metres

WIDEST = 1.5
"""Largest scaled half-angle (radians): beyond a right angle a cone is none."""

TOUCH = 1e-5
"""Gap per metre of depth that still counts as touching. Diagonal neighbours of
coinciding cameras touch exactly along a ray: rounding must not decide there."""


class Cones(NamedTuple):
    """One cone per token.

    Attributes:
      apex: camera centre, metres.
      axis: unit vector.
      slope: tan(scale * gamma), radius per depth.
    """

    apex: Float[Array, "*batch tokens 3"]
    axis: Float[Array, "*batch tokens 3"]
    slope: Float[Array, "*batch tokens"]


def token_cones(cameras: Cameras, grid: Grid, scale: ArrayLike = 1.0) -> Cones:
    """The cones of all h*w tokens of each camera, in (h w) order.

    gamma is the largest angle between the axis and the rays through the patch's
    corners and edge midpoints (the midpoints for distorted, bulging edges).
    """
    h, w = grid
    step = jnp.array([cameras.width / w, cameras.height / h], jnp.float32)
    row, column = jnp.meshgrid(jnp.arange(h), jnp.arange(w), indexing="ij")
    middle = (jnp.stack([column, row], axis=-1).reshape(h * w, 2) + 0.5) * step
    # The nine points of a patch: its centre first, then its outline.
    ring = [(x, y) for y in (-0.5, 0.0, 0.5) for x in (-0.5, 0.0, 0.5) if (x, y) != (0, 0)]
    points = middle[:, None] + jnp.array([(0.0, 0.0), *ring]) * step
    batch = cameras.extrinsics.shape[:-2]
    pixels = jnp.broadcast_to(points.reshape(-1, 2), (*batch, 9 * h * w, 2))
    directions = rearrange(rays(cameras, pixels), "... (n k) c -> ... n k c", k=9)
    axis, outline = directions[..., 0, :], directions[..., 1:, :]
    # atan2 rather than arccos, which loses half the digits at small angles.
    sine = jnp.linalg.norm(jnp.cross(axis[..., None, :], outline), axis=-1)
    gamma = jnp.max(jnp.arctan2(sine, _dot(axis[..., None, :], outline)), axis=-1)
    apex = jnp.broadcast_to(centre(cameras)[..., None, :], axis.shape)
    return Cones(apex, axis, jnp.tan(jnp.minimum(scale * gamma, WIDEST)))


def co_visible(
    cameras_a: Cameras,
    cameras_b: Cameras,
    grid: Grid,
    depth_band: Band,
    scale: ArrayLike = 1.0,
) -> Bool[Array, "*batch tokens tokens"]:
    """Equation (1) for all pairs of tokens of two cameras.

    Args:
      cameras_a, cameras_b: the same leading axes; they may coincide.
      grid: tokens (h, w) over each image.
      depth_band: (dmin, dmax) in metres, 0 <= dmin < dmax.
      scale: l, factor on the half-angles.

    Returns:
      [..., u, u'] with u a token of a and u' of b, both in (h w) order.
      `co_visible(b, a)` is exactly its transpose: both orders are evaluated and
      either suffices, so that not even rounding tells them apart.

    Raises:
      ValueError: an empty depth band.
    """
    _check_band(depth_band)
    a, b = token_cones(cameras_a, grid, scale), token_cones(cameras_b, grid, scale)
    return _overlap(a, b, depth_band) | jnp.swapaxes(_overlap(b, a, depth_band), -2, -1)


def multi_view_mask(
    cameras: Cameras, grid: Grid, depth_band: Band, scale: ArrayLike = 1.0
) -> Bool[Array, "*batch tokens tokens"]:
    """M of the view-attention blocks: who may attend to whom on one latent frame.

    Args:
      cameras: the last leading axis is the view (extrinsics [..., V, 4, 4]).
      grid, depth_band, scale: as in `co_visible`.

    Returns:
      [..., V*h*w, V*h*w] in (v h w) order, symmetric. Tokens of the same view
      always see each other (method section 2).
    """
    _check_band(depth_band)
    cones = token_cones(cameras, grid, scale)
    views, tokens = cones.axis.shape[-3:-1]
    joined = Cones(*(rearrange(x, "... v n c -> ... (v n) c") for x in cones[:2]), _join(cones[2]))
    overlap = _overlap(joined, joined, depth_band)
    view = jnp.repeat(jnp.arange(views), tokens)
    return overlap | jnp.swapaxes(overlap, -2, -1) | (view[:, None] == view)


def _join(slope):
    return rearrange(slope, "... v n -> ... (v n)")


def _check_band(band: Band) -> None:
    if not 0 <= band[0] < band[1]:
        raise ValueError(f"depth_band={band}: needs 0 <= dmin < dmax, in metres")


def _dot(a, b):
    """Scalar product over the last axis, broadcasting the others."""
    return jnp.sum(a * b, axis=-1)


def _overlap(a: Cones, b: Cones, band: Band) -> Bool[Array, "*batch m n"]:
    """Whether the least gap (2) over the square of depths is not positive."""
    # Pairs [..., m, n]: a's tokens along m, b's along n.
    p, d, tan_a = a.apex[..., :, None, :], a.axis[..., :, None, :], a.slope[..., :, None]
    q, e, tan_b = b.apex[..., None, :, :], b.axis[..., None, :, :], b.slope[..., None, :]

    def touches(t1, t2):
        gap = (p + t1[..., None] * d) - (q + t2[..., None] * e)
        reach = t1 * tan_a + t2 * tan_b + TOUCH * (t1 + t2)
        return jnp.linalg.norm(gap, axis=-1) <= reach

    found = touches(*_stationary(p - q, d, e, tan_a, tan_b, band))
    for depth in band:
        t = jnp.full(tan_a.shape, depth)  # the side t1 = depth, then t2 = depth
        found |= touches(t, _nearest(p + t[..., None] * d, q, e, tan_b, band))
        t = jnp.full(tan_b.shape, depth)
        found |= touches(_nearest(q + t[..., None] * e, p, d, tan_a, band), t)
    return found


def _nearest(point, apex, axis, slope, band):
    """The depth t in the band that minimises ||point - apex - t axis|| - t slope.

    With s the foot of the point on the axis and r its distance from it, the
    derivative (t - s) / sqrt(r^2 + (t - s)^2) - slope is zero at
    t = s + r slope / sqrt(1 - slope^2). From slope 1 on (a half-angle of 45
    degrees) the cone outgrows every distance: the deepest t is best.
    """
    foot = _dot(point - apex, axis)
    distance = jnp.linalg.norm(point - apex - foot[..., None] * axis, axis=-1)
    ahead = distance * slope / jnp.sqrt(jnp.maximum(1 - jnp.square(slope), 1e-9))
    return jnp.where(slope < 1, jnp.clip(foot + ahead, *band), band[1])


def _stationary(offset, d, e, tan_a, tan_b, band):
    """Depths (t1, t2) where both derivatives of (2) vanish, clamped to the band.

    There the unit vector g along the gap has g.d = tan_a and g.e = -tan_b. With
    c = d.e its part in the plane of the axes is alpha d + beta e, of squared
    length m2; the rest is along the axes' common normal, where the gap has the
    fixed length `skew`, hence the gap is skew / sqrt(1 - m2) long. If m2 >= 1
    there is no such point; any depths in the band are a fair answer then, as
    the caller tests whatever it is given.
    """
    c = _dot(d, e)
    normal = jnp.cross(d, e)
    sine2 = jnp.maximum(_dot(normal, normal), 1e-9)  # 1 - c^2 without cancellation
    alpha, beta = (tan_a + tan_b * c) / sine2, -(tan_b + tan_a * c) / sine2
    m2 = alpha * tan_a - beta * tan_b
    skew = jnp.abs(_dot(offset, normal)) / jnp.sqrt(sine2)
    length = skew / jnp.sqrt(jnp.maximum(1 - m2, 1e-9))
    along, across = _dot(offset, d), _dot(offset, e)
    t1 = length * alpha - (along - c * across) / sine2
    t2 = (across - c * along) / sine2 - length * beta
    return jnp.clip(t1, *band), jnp.clip(t2, *band)
