"""The scene: cameras look where they should, and thin meshes change no physics."""

import numpy as np
import pytest

from wallwm_jax.sim import scene
from wallwm_jax.sim.experts import Expert
from wallwm_jax.sim.metaworld import MetaWorldEnv


@pytest.mark.parametrize("camera", [camera for _, camera in scene.FIXED_CAMERAS])
def test_look_at_faces_the_target_upright(camera):
    rotation = scene.look_at(camera)
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(3), atol=1e-12)
    assert np.isclose(np.linalg.det(rotation), 1)
    forward = np.subtract(camera.target, camera.position)
    np.testing.assert_allclose(-rotation[:, 2], forward / np.linalg.norm(forward))
    assert rotation[2, 0] == 0 and rotation[2, 1] > 0  # the horizon is level, up is up


def _trace(env, steps=60):
    """Everything physical over an expert episode that ends in contact."""
    env.reset(3)
    expert, rows = Expert(env.task), []
    for _ in range(steps):
        env.step(*expert.act(env))
        rows.append(np.concatenate([env.data.qpos, env.data.qvel, env.target_position]))
    return np.stack(rows)


def test_thin_meshes_and_cameras_do_not_change_the_physics(physics_env):
    thin = physics_env("drawer-open")
    with MetaWorldEnv("drawer-open", views=(), thin_meshes=False) as full:
        # The shipped collision hulls stay in the scene, undrawn; a sixth is drawn.
        drawn, hulls = thin.model.mesh_facenum, full.model.mesh_facenum
        assert drawn.sum() < 0.45 * hulls.sum()
        np.testing.assert_array_equal(thin.model.body_inertia, full.model.body_inertia)
        np.testing.assert_array_equal(_trace(thin), _trace(full))
