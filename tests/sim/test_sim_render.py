"""Pictures against calibration: a known point must land where it is drawn."""

import numpy as np
import pytest

from wallwm_jax.sim import render, scene
from wallwm_jax.sim.experts import Expert
from wallwm_jax.sim.metaworld import MetaWorldEnv


@pytest.fixture(scope="module")
def puck_env(rendering_env):
    """Larger pictures (128 px), the hand on its way to the puck."""
    del rendering_env  # only for its check of the GL library
    with MetaWorldEnv("push", image_size=128) as env:
        env.reset(0)
        expert = Expert("push")
        for _ in range(8):
            env.step(*expert.act(env))
        yield env


def _project(camera, point):
    x = camera.extrinsics[0] @ np.append(point, 1.0)
    pixel = camera.intrinsics @ x[:3]
    return pixel[:2] / pixel[2], x[2]


def _puck_pixels(env, view):
    """Centres of the pixels that show the puck, (column, row)."""
    shown = env._renderer.segment(env.data, view) == env.model.geom("objGeom").id
    rows, columns = np.nonzero(shown)
    return np.stack([columns, rows], axis=1) + 0.5


@pytest.mark.parametrize("view", ["ego", "side"])
def test_centroid_of_the_mask_is_the_projected_centre(puck_env, view):
    pixels = _puck_pixels(puck_env, view)
    camera = puck_env.observe().cameras[view]
    projected, depth = _project(camera, puck_env.data.geom("objGeom").xpos)
    assert len(pixels) > 10 and 0 < depth < 2
    assert np.linalg.norm(pixels.mean(axis=0) - projected) < 1.0


def test_the_wrist_camera_moves_and_still_projects_into_the_mask(puck_env):
    before = puck_env.observe().cameras["wrist"]
    puck_env.step(puck_env.target_position + [0.0, 0.0, -0.02], -1.0)
    after = puck_env.observe().cameras["wrist"]
    assert not np.array_equal(before.extrinsics, after.extrinsics)
    pixels = _puck_pixels(puck_env, "wrist")
    projected, _ = _project(after, puck_env.data.geom("objGeom").xpos)
    # Seen from near, the centroid of a cylinder's picture is not its centre's picture.
    assert (pixels.min(axis=0) <= projected).all() and (projected <= pixels.max(axis=0)).all()


def test_extrinsics_are_rigid_and_hold_the_cameras_place(puck_env):
    cameras = puck_env.observe().cameras
    for name, fixed in scene.FIXED_CAMERAS:
        extrinsics = cameras[name].extrinsics[0]
        rotation, translation = extrinsics[:3, :3], extrinsics[:3, 3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
        np.testing.assert_allclose(-rotation.T @ translation, fixed.position, atol=1e-9)
        pixel, _ = _project(cameras[name], np.array(fixed.target))
        np.testing.assert_allclose(pixel, [64, 64], atol=1e-6)  # it looks at its target


def test_drawing_repeats_exactly_and_changes_nothing(puck_env):
    state = puck_env.data.qpos.copy()
    first = puck_env.observe().frames
    puck_env._renderer.segment(puck_env.data, "ego")  # must not leave its mode behind
    second = puck_env.observe().frames
    for view, picture in first.items():
        assert picture.shape == (128, 128, 3)
        np.testing.assert_array_equal(picture, second[view])
        assert picture.std() > 15, f"{view} shows nothing"
    assert not np.array_equal(first["ego"], first["side"])
    np.testing.assert_array_equal(state, puck_env.data.qpos)


def test_focal_length_follows_the_field_of_view(puck_env):
    camera = render.calibration(puck_env.model, puck_env.data, "wrist", 128)
    # 90 degrees: half the picture is as wide as the focal length is long.
    np.testing.assert_allclose(camera.intrinsics, [[64, 0, 64], [0, 64, 64], [0, 0, 1]])
