"""Pinhole cameras with Brown distortion, batched over any leading axes.

Conventions: OpenCV axes (x right, y down, z forward), metres, extrinsics from
world to camera; pixel coordinates with the centre of the top-left pixel at
(0.5, 0.5), so the image covers [0, width] x [0, height]. Normalised coordinates
are pixels without K, on the plane z = 1 of the camera:

    X_c = R X_w + t,    (x, y) = (X, Y) / Z,    pixel = K distort(x, y)           (1)
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@flax.struct.dataclass
class Cameras:
    """A batch of calibrated cameras of one image size.

    The array fields are not shape-typed: JAX also builds this tree around shapes,
    shardings and None, which a checked annotation would refuse.

    Attributes:
      intrinsics: float[*batch, 3, 3], K in pixels.
      extrinsics: float[*batch, 4, 4], world -> camera, metres.
      distortion: float[*batch, 5], Brown (k1, k2, p1, p2, k3); None means none.
      width, height: image size in pixels, the same for the whole batch.
    """

    intrinsics: Any
    extrinsics: Any
    distortion: Any = None
    width: int = flax.struct.field(pytree_node=False, default=1)
    height: int = flax.struct.field(pytree_node=False, default=1)


def centre(cameras: Cameras) -> Float[Array, "*batch 3"]:
    """Camera centres in the world, metres: -R^T t."""
    rotation, translation = cameras.extrinsics[..., :3, :3], cameras.extrinsics[..., :3, 3]
    return -jnp.einsum("...ij,...i->...j", rotation, translation)


def distort(
    xy: Float[Array, "*batch n 2"], coefficients: Float[Array, "*batch 5"]
) -> Float[Array, "*batch n 2"]:
    """Ideal -> distorted normalised coordinates (Brown's radial and tangential terms)."""
    radial, tangential = _brown(xy, coefficients)
    return xy * radial + tangential


def undistort(
    xy: Float[Array, "*batch n 2"],
    coefficients: Float[Array, "*batch 5"],
    *,
    iterations: int = 20,
) -> Float[Array, "*batch n 2"]:
    """Distorted -> ideal normalised coordinates, by fixed-point iteration.

    Solves xy = ideal * radial(ideal) + tangential(ideal), which has no closed
    form, for `ideal`. It contracts where the lens model is invertible with room
    to spare, i.e. for the lenses of robots inside their image; a wide fisheye
    needs another model, not more iterations.
    """

    def refine(_, ideal):
        radial, tangential = _brown(ideal, coefficients)
        return (xy - tangential) / radial

    return jax.lax.fori_loop(0, iterations, refine, xy)


def _brown(xy, coefficients):
    """Radial factor [..., n, 1] and tangential offset [..., n, 2] at ideal coordinates."""
    k1, k2, p1, p2, k3 = (coefficients[..., i, None, None] for i in range(5))
    r2 = jnp.sum(jnp.square(xy), axis=-1, keepdims=True)
    radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
    cross = 2 * xy[..., :1] * xy[..., 1:]
    along = r2 + 2 * jnp.square(xy)  # [r2 + 2 x^2, r2 + 2 y^2]
    p12 = jnp.concatenate([p1, p2], axis=-1)
    p21 = jnp.concatenate([p2, p1], axis=-1)
    return radial, p12 * cross + p21 * along


def project(
    cameras: Cameras, points: Float[Array, "*batch n 3"]
) -> tuple[Float[Array, "*batch n 2"], Float[Array, "*batch n"]]:
    """World points (metres) -> pixels and depths Z; equation (1).

    A point with depth <= 0 is behind its camera and its pixel means nothing.
    """
    rotation, translation = cameras.extrinsics[..., :3, :3], cameras.extrinsics[..., :3, 3]
    local = jnp.einsum("...ij,...nj->...ni", rotation, points) + translation[..., None, :]
    depth = local[..., 2]
    xy = local[..., :2] / jnp.where(depth == 0, 1, depth)[..., None]
    if cameras.distortion is not None:
        xy = distort(xy, cameras.distortion)
    pixels = jnp.einsum("...ij,...nj->...ni", cameras.intrinsics[..., :2, :2], xy)
    return pixels + cameras.intrinsics[..., None, :2, 2], depth


def rays(cameras: Cameras, pixels: Float[Array, "*batch n 2"]) -> Float[Array, "*batch n 3"]:
    """Unit directions, in the world, of the rays through pixels (from `centre`).

    The inverse of `project` up to depth: centre + s * ray projects to the pixel.
    """
    k = cameras.intrinsics
    offset = pixels - k[..., None, :2, 2]
    # K's upper triangle solved by hand (skew included): cheaper and more exact
    # in float32 than a general inverse.
    y = offset[..., 1] / k[..., None, 1, 1]
    x = (offset[..., 0] - k[..., None, 0, 1] * y) / k[..., None, 0, 0]
    xy = jnp.stack([x, y], axis=-1)
    if cameras.distortion is not None:
        xy = undistort(xy, cameras.distortion)
    local = jnp.concatenate([xy, jnp.ones_like(xy[..., :1])], axis=-1)
    world = jnp.einsum("...ij,...ni->...nj", cameras.extrinsics[..., :3, :3], local)
    return world / jnp.linalg.norm(world, axis=-1, keepdims=True)
