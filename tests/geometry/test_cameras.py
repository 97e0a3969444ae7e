"""Cameras: projection and rays undo each other; distortion by literals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wallwm_jax.geometry import cameras as module
from wallwm_jax.geometry.cameras import Cameras

centre, distort, project, rays, undistort = map(
    jax.jit, (module.centre, module.distort, module.project, module.rays, module.undistort)
)

K = np.array([[80.0, 0.5, 33.0], [0, 78.0, 30.0], [0, 0, 1]], np.float32)
LENS = np.array([-0.28, 0.09, 0.001, -0.002, -0.01], np.float32)


def look_at(eye, target, roll=0.0):
    """World -> camera matrix (OpenCV axes) of a camera at `eye` facing `target`."""
    forward = np.subtract(target, eye) / np.linalg.norm(np.subtract(target, eye))
    down = np.array([np.sin(roll), 0.1, -np.cos(roll)])
    right = np.cross(down, forward)
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, -rotation @ eye
    return matrix.astype(np.float32)


def rig(count=3, distorted=False, seed=0):
    """Cameras around the origin, about a metre away, all looking near it."""
    rng = np.random.default_rng(seed)
    eyes = rng.normal(size=(count, 3))
    eyes /= np.linalg.norm(eyes, axis=-1, keepdims=True)
    poses = [look_at(eye, rng.normal(size=3) * 0.1, rng.uniform(-1, 1)) for eye in eyes]
    lens = jnp.asarray(np.tile(LENS, (count, 1))) if distorted else None
    return Cameras(jnp.asarray(np.tile(K, (count, 1, 1))), jnp.asarray(poses), lens, 64, 60)


@pytest.mark.parametrize("distorted", [False, True])
def test_rays_invert_projection(distorted):
    cameras = rig(distorted=distorted)
    pixels = jnp.asarray(np.random.default_rng(1).uniform(0, 60, size=(3, 40, 2)), jnp.float32)
    points = centre(cameras)[:, None] + 0.7 * rays(cameras, pixels)
    back, depth = project(cameras, points)
    np.testing.assert_allclose(back, pixels, atol=2e-3)
    assert np.all(depth > 0)


def test_projection_by_hand():
    # One metre ahead of the camera, 0.1 m right and 0.2 m down: 50 px per unit.
    k = jnp.array([[50.0, 0, 32], [0, 50, 32], [0, 0, 1]])
    pose = jnp.eye(4).at[:3, 3].set(jnp.array([0.0, 0.0, 2.0]))  # centre at z = -2
    cameras = Cameras(k, pose, None, 64, 64)
    np.testing.assert_allclose(centre(cameras), [0, 0, -2])
    pixels, depth = project(cameras, jnp.array([[0.1, 0.2, -1.0], [0.0, 0.0, -3.0]]))
    np.testing.assert_allclose(pixels[0], [37, 42], rtol=1e-6)
    np.testing.assert_allclose(depth, [1, -1])


def test_camera_centre_is_the_eye():
    eye = [0.3, -0.8, 0.5]
    cameras = Cameras(jnp.asarray(K), jnp.asarray(look_at(eye, [0, 0, 0])), None, 64, 60)
    np.testing.assert_allclose(centre(cameras), eye, atol=1e-6)


def test_brown_model_by_hand():
    xy = jnp.array([[0.5, -0.25]])
    # r2 = 0.3125; radial = 1 + 0.1 r2 + 0.2 r2^2 + 0.3 r2^3
    radial = 1 + 0.03125 + 0.01953125 + 0.3 * 0.3125**3
    x = 0.5 * radial + 2 * 0.01 * 0.5 * -0.25 + 0.02 * (0.3125 + 2 * 0.25)
    y = -0.25 * radial + 0.01 * (0.3125 + 2 * 0.0625) + 2 * 0.02 * 0.5 * -0.25
    got = distort(xy, jnp.array([0.1, 0.2, 0.01, 0.02, 0.3]))
    np.testing.assert_allclose(got, [[x, y]], rtol=1e-6)


def test_undistort_inverts_distort():
    xy = jnp.asarray(np.random.default_rng(2).uniform(-0.5, 0.5, size=(4, 50, 2)), jnp.float32)
    lens = jnp.tile(jnp.asarray(LENS), (4, 1))
    np.testing.assert_allclose(undistort(distort(xy, lens), lens), xy, atol=2e-6)


def test_is_a_tree_with_static_size():
    cameras = rig()
    empty = jax.tree.map(lambda _: None, cameras)
    assert (empty.width, empty.height, empty.intrinsics) == (64, 60, None)
    shapes = jax.eval_shape(lambda c: jax.vmap(centre)(c), cameras)
    assert shapes.shape == (3, 3)
