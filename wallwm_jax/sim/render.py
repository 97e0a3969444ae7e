"""Draws the views of a scene and reads their calibration.

Three views of 64 pixels cost a few milliseconds in software, because shadows,
reflections and the sky are off and the meshes thin (see `scene`).
"""

from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8

from wallwm_jax.episodes.record import Camera
from wallwm_jax.sim import gl
from wallwm_jax.sim.scene import mujoco


class SceneRenderer:
    """Owns one GL context for one compiled scene.

    Close it before making another one for the same scene: a renderer collected
    late frees its GL objects inside the context of its successor and silently
    corrupts the pictures. `MetaWorldEnv.close` does this in the right order.
    """

    def __init__(self, model: Any, *, image_size: int, views: tuple[str, ...]) -> None:
        """Makes the context.

        Raises:
          GLUnavailable: no off-screen GL library can be loaded.
        """
        gl.require_gl()
        self.views = views
        self._renderer = mujoco.Renderer(model, image_size, image_size)

    def render(self, data: Any) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        """Draws every view of the current state, without changing it."""
        return {view: self._draw(data, view) for view in self.views}

    def segment(self, data: Any, view: str) -> Any:
        """Geom number of every pixel of one view, -1 for the background: int32[h, w]."""
        self._renderer.enable_segmentation_rendering()
        pixels = self._draw(data, view)
        self._renderer.disable_segmentation_rendering()
        return np.where(pixels[..., 1] == mujoco.mjtObj.mjOBJ_GEOM, pixels[..., 0], -1)

    def close(self) -> None:
        """Frees the GL context; may be called twice."""
        self._renderer.close()

    def _draw(self, data: Any, view: str) -> Any:
        self._renderer.update_scene(data, view)
        flags = self._renderer.scene.flags  # reset by every update of the scene
        flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        flags[mujoco.mjtRndFlag.mjRND_SKYBOX] = 0
        return self._renderer.render()


def calibration(model: Any, data: Any, view: str, image_size: int) -> Camera:
    """Calibration of one view now (one observation), OpenCV axes, pixels and metres.

    MuJoCo's cameras look along -z with y up; a half turn about x gives OpenCV's
    x right, y down, z forward. Pixels are square and the axis goes through the
    centre of the picture.
    """
    camera = model.camera(view).id
    focal = 0.5 * image_size / np.tan(np.deg2rad(model.cam_fovy[camera]) / 2)
    centre = image_size / 2
    intrinsics = np.array([[focal, 0, centre], [0, focal, centre], [0, 0, 1]])
    to_world = data.cam_xmat[camera].reshape(3, 3) @ np.diag([1.0, -1.0, -1.0])
    return Camera(
        intrinsics=intrinsics, extrinsics=_rigid_inverse(to_world, data.cam_xpos[camera])[None]
    )


def _rigid_inverse(
    rotation: Float64[np.ndarray, "3 3"], position: Float64[np.ndarray, "3"]
) -> Float64[np.ndarray, "4 4"]:
    """Inverse of the pose (rotation, position): world -> camera for a camera's pose."""
    inverse = np.eye(4)
    inverse[:3, :3] = rotation.T
    inverse[:3, 3] = -rotation.T @ position
    return inverse
