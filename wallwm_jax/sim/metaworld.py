"""Meta-World behind the small interface that recording and roll-outs use.

The robot is commanded by a position: the target that the hand is softly welded
to. Meta-World itself takes displacements at 80 Hz; `step` splits one command of
the control rate into them. Reading the commanded target back (and not the hand,
which lags behind it) makes a recorded episode replay exactly.
"""

import dataclasses
from typing import Any, SupportsFloat

import numpy as np
from jaxtyping import Float, Float32, Float64, UInt8

from wallwm_jax.episodes.record import Camera
from wallwm_jax.sim import contacts, render, scene, simulator, tasks

SIMULATOR_HZ = 80.0
METRES_PER_UNIT = 0.01  # Meta-World moves the target by 1 cm for an action of 1
OPEN = -1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observation:
    """What the robot knows before a control step.

    Attributes:
      frames: view -> picture; empty when the environment does not render.
      cameras: view -> calibration of this observation (one row of extrinsics).
      state: hand xyz (m), gripper opening (0..1), 10 * (target - hand) (m),
        displacement of the target in the previous step (cm), previous gripper
        command. The lag is scaled so that all entries are of order 0.1 to 1.
      target_position: commanded position of the hand, metres, world.
      target_rotation: commanded rotation; Meta-World never turns the hand.
      gripper: previous gripper command, -1 open .. +1 closed.
    """

    frames: dict[str, UInt8[np.ndarray, "h w 3"]]
    cameras: dict[str, Camera]
    state: Float32[np.ndarray, "11"]
    target_position: Float64[np.ndarray, "3"]
    target_rotation: Float64[np.ndarray, "3 3"]
    gripper: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepResult:
    """Outcome of one control step.

    Attributes:
      success: the task's success test held after any of its simulator steps
        (some successes are momentary).
      info: what Meta-World reports after the last simulator step.
    """

    success: bool
    info: dict[str, Any]


class MetaWorldEnv:
    """One Meta-World task; a context manager that owns its renderer.

    Reset with any seed, in any order: the scene after `reset(seed)` is a function
    of the seed alone, so one environment serves a whole data set.
    """

    def __init__(
        self,
        task: str,
        *,
        image_size: int = 64,
        views: tuple[str, ...] = scene.VIEWS,
        control_repeat: int = 2,
        thin_meshes: bool = True,
    ) -> None:
        """Compiles the scene; makes a GL context unless `views` is empty.

        Args:
          task: a name in `tasks.TASKS`.
          image_size: side of the square pictures, pixels.
          views: which cameras to draw.
          control_repeat: simulator steps (80 Hz) per control step.
          thin_meshes: see `scene.compile_scene`.

        Raises:
          ValueError: unknown task or view.
          GLUnavailable: views are wanted and no GL library can be loaded.
        """
        for view in views:
            if view not in scene.VIEWS:
                raise ValueError(f"unknown view {view!r}; choose from: {', '.join(scene.VIEWS)}")
        self.spec = tasks.task_spec(task)
        self.image_size = image_size
        self.views = views
        self.control_repeat = control_repeat
        self._sim = simulator.build(task, image_size=image_size, thin_meshes=thin_meshes)
        self.parts = contacts.layout(self.model)
        self._pristine = simulator.snapshot(self._sim)
        self._renderer = None
        if views:
            self._renderer = render.SceneRenderer(self.model, image_size=image_size, views=views)
        self.reset(0)

    @property
    def task(self) -> str:
        """Name of the task."""
        return self.spec.name

    @property
    def instruction(self) -> str:
        """The global language instruction."""
        return self.spec.instruction

    @property
    def control_hz(self) -> float:
        """Control steps per second of simulated time."""
        return SIMULATOR_HZ / self.control_repeat

    @property
    def model(self) -> Any:
        """The compiled scene (`MjModel`)."""
        return self._sim.model

    @property
    def data(self) -> Any:
        """The state of the scene (`MjData`)."""
        return self._sim.data

    @property
    def target_position(self) -> Float64[np.ndarray, "3"]:
        """Commanded position of the hand, metres (a copy)."""
        return self.data.mocap_pos[0].copy()

    @property
    def expert_observation(self) -> Float64[np.ndarray, "39"]:
        """The privileged state vector that Meta-World's scripted experts read."""
        return self._expert_observation.copy()

    def reset(self, seed: int) -> None:
        """Puts the scene into the start state of `seed`."""
        simulator.restore(self._sim, self._pristine)
        self._expert_observation = simulator.reset(self._sim, seed)
        self._displacement = np.zeros(3)
        self._gripper = OPEN

    def observe(self) -> Observation:
        """Draws the views and reads the robot's own sensors; changes nothing."""
        hand, target = self._hand(), self.target_position
        opening = self._expert_observation[3:4]
        lag, moved = 10 * (target - hand), 100 * self._displacement
        frames = self._renderer.render(self.data) if self._renderer else {}
        return Observation(
            frames=frames,
            cameras={v: self._camera(v) for v in self.views},
            state=np.concatenate([hand, opening, lag, moved, [self._gripper]]).astype(np.float32),
            target_position=target,
            target_rotation=np.eye(3),
            gripper=self._gripper,
        )

    def step(
        self, desired_position: Float[np.ndarray, "3"], gripper: SupportsFloat
    ) -> StepResult:
        """Moves the commanded target towards a position during one control step.

        Args:
          desired_position: metres, world. The target gets at most 1 cm per axis
            and simulator step closer, and stays inside the task's work space.
          gripper: -1 open .. +1 closed (clipped).

        Raises:
          ValueError: the command is not finite (the physics would blow up silently).
        """
        if not np.isfinite([*desired_position, float(gripper)]).all():
            raise ValueError(
                f"{self.task}: command {desired_position}, {gripper} is not finite; "
                "check the policy's output"
            )
        before = self.target_position
        self._gripper = float(np.clip(float(gripper), -1.0, 1.0))
        success = False
        for done in range(self.control_repeat):
            share = (desired_position - self.target_position) / (self.control_repeat - done)
            move = np.clip(share / METRES_PER_UNIT, -1.0, 1.0)
            self._expert_observation, _, _, _, info = self._sim.step(
                np.append(move, self._gripper)
            )
            success |= bool(info["success"])
        self._displacement = self.target_position - before
        return StepResult(success=success, info=info)

    def signals(self) -> dict[str, Any]:
        """Privileged readings of this observation, for labelling and scoring.

        Returns:
          contact, both_pads (bool, see `contacts.touching`), gripper_opening
          (0..1), hand_position, goal_position and main_object (float64[3], m),
          body_positions (float64[task bodies, 3], m) and joint_positions
          (float64[task joints, 3]: metres, or radians in the first column).
        """
        contact, both_pads = contacts.touching(self.model, self.data, self.parts)
        return {
            "contact": contact,
            "both_pads": both_pads,
            "gripper_opening": float(self._expert_observation[3]),
            "hand_position": self._hand(),
            "goal_position": np.array(self._sim._target_pos, np.float64),
            "main_object": self._expert_observation[4:7].copy(),
            "body_positions": self.data.xpos[self.parts.task].copy(),
            "joint_positions": self._joint_positions(),
        }

    @property
    def joint_kinds(self) -> tuple[int, ...]:
        """MuJoCo's type of every task joint (0 free, 2 slide, 3 hinge)."""
        return tuple(int(k) for k in self.model.jnt_type[self.parts.joints])

    def save_state(self) -> dict[str, Any]:
        """A copy of everything that `step` and `reset` change."""
        return simulator.snapshot(self._sim) | {
            "observation": self._expert_observation.copy(),
            "displacement": self._displacement.copy(),
            "gripper": self._gripper,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Returns to a state of `save_state`, of this environment."""
        simulator.restore(self._sim, state)
        self._expert_observation = state["observation"].copy()
        self._displacement = state["displacement"].copy()
        self._gripper = state["gripper"]

    def close(self) -> None:
        """Frees the renderer first, then the simulator; may be called twice."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        self._sim.close()

    def __enter__(self) -> "MetaWorldEnv":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _camera(self, view: str) -> Camera:
        return render.calibration(self.model, self.data, view, self.image_size)

    def _hand(self) -> Float64[np.ndarray, "3"]:
        return self.data.body("hand").xpos.copy()

    def _joint_positions(self) -> Float64[np.ndarray, "joints 3"]:
        """Coordinates of the task joints, one row each (a free joint: its position)."""
        rows = np.zeros((len(self.parts.joints), 3))
        for row, joint, kind in zip(rows, self.parts.joints, self.joint_kinds, strict=True):
            start, width = self.model.jnt_qposadr[joint], 3 if kind == contacts.FREE else 1
            row[:width] = self.data.qpos[start : start + width]
        return rows
