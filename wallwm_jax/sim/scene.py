"""Compiles a Meta-World scene for fast pictures, with our three cameras in it.

Everything visual is changed in the specification, before compiling: named
cameras, thinned robot meshes, no shadow map, no multi-sampling. Nothing that
moves is touched: a mesh that takes part in collisions keeps its original hull
(hidden) and only what is drawn is replaced. The trajectories are the same, bit
for bit, as those of the scene as shipped.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Float64

from wallwm_jax.sim import gl, meshes

mujoco = gl.import_mujoco()

VIEWS = ("ego", "side", "wrist")
"""The views of every embodiment we simulate, in the order models see them."""

MIN_FACES = 400  # below that a mesh is a box or a rod already
HIDDEN_GROUP = 3  # not drawn by default, and not one of the groups (4, 5) that give inertia


@dataclasses.dataclass(frozen=True)
class FixedCamera:
    """A camera standing in the world: metres, and vertical field of view in degrees."""

    position: tuple[float, float, float]
    target: tuple[float, float, float]
    field_of_view: float


FIXED_CAMERAS = (
    # Over the robot's right shoulder: a camera in its head has the arm in front
    # of the workspace most of the time.
    ("ego", FixedCamera((0.32, 0.10, 0.65), (0.0, 0.72, 0.08), 55.0)),
    ("side", FixedCamera((-0.85, 0.35, 0.55), (0.0, 0.72, 0.10), 42.0)),
)
WRIST_CAMERA = "gripperPOV"  # Meta-World's own camera on the hand


def compile_scene(path: str, *, image_size: int, thin_meshes: bool = True) -> Any:
    """Compiles the MJCF file at `path` into an `MjModel` with the cameras in VIEWS.

    Args:
      path: a Meta-World scene.
      image_size: side of the square pictures, pixels.
      thin_meshes: draw the clustered robot meshes instead of the full ones.
    """
    spec = mujoco.MjSpec.from_file(path)
    spec.visual.quality.offsamples = 0
    spec.visual.quality.shadowsize = 16  # shadows are off; 4096 costs 0.3 s per renderer
    spec.visual.global_.offwidth = spec.visual.global_.offheight = image_size
    _add_cameras(spec)
    if thin_meshes:
        _thin(spec, pathlib.Path(path).parent)
    return spec.compile()


def look_at(camera: FixedCamera) -> Float64[np.ndarray, "3 3"]:
    """Rotation (columns x right, y up, z backwards: MuJoCo's camera axes) facing the target."""
    back = np.subtract(camera.position, camera.target)
    back = back / np.linalg.norm(back)
    right = np.cross((0.0, 0.0, 1.0), back)
    right = right / np.linalg.norm(right)
    return np.stack([right, np.cross(back, right), back], axis=1)


def _add_cameras(spec: Any) -> None:
    for name, camera in FIXED_CAMERAS:
        quaternion = np.zeros(4)
        mujoco.mju_mat2Quat(quaternion, look_at(camera).ravel())
        spec.worldbody.add_camera(
            name=name, pos=camera.position, quat=quaternion, fovy=camera.field_of_view
        )
    next(c for c in spec.cameras if c.name == WRIST_CAMERA).name = "wrist"


def _thin(spec: Any, folder: pathlib.Path) -> None:
    """Replaces what is drawn of every large robot mesh."""
    collides = {g.meshname for g in spec.geoms if g.meshname and (g.contype or g.conaffinity)}
    for mesh in list(spec.meshes):
        # Task objects keep their meshes: handles and knobs are as small as a cell.
        if "xyz_base" not in mesh.file:
            continue
        triangles = meshes.read_stl(folder / spec.meshdir / mesh.file)
        if len(triangles) < MIN_FACES:
            continue
        vertices, faces = meshes.cluster(triangles)
        if mesh.name in collides:
            mesh = _drawn_twin(spec, mesh.name)
        mesh.file = ""
        mesh.uservert = vertices.ravel().astype(np.float32)
        mesh.userface = faces.ravel().astype(np.int32)


def _drawn_twin(spec: Any, name: str) -> Any:
    """Hides the geoms of a colliding mesh; returns a new mesh drawn in their place."""
    twin = spec.add_mesh(name=f"{name}_drawn")
    for geom in [g for g in spec.geoms if g.meshname == name]:
        geom.parent.add_geom(
            type=mujoco.mjtGeom.mjGEOM_MESH, meshname=twin.name, pos=geom.pos, quat=geom.quat,
            rgba=geom.rgba, material=geom.material, group=geom.group, contype=0, conaffinity=0,
        )
        geom.group = HIDDEN_GROUP
    return twin
