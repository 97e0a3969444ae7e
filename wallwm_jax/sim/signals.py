"""Turns per-step readings into the signal channels of an `Episode`.

What matters in an episode is known only at its end: which body was moved and
which joint gave way. So the readings of all bodies are kept while recording and
reduced here, in hindsight, to one moving body and one main joint.
"""

import types
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from wallwm_jax.sim.contacts import FREE, HINGE, SLIDE

NOTHING_MOVED = -1
# A joint that went further than this (m or rad) was moved, not brushed or settling.
_TRAVEL = types.MappingProxyType({FREE: 0.01, SLIDE: 0.004, HINGE: 0.05})


def episode_signals(
    readings: list[dict[str, Any]],
    gripper_command: Float32[np.ndarray, "steps"],
    joint_kinds: tuple[int, ...],
) -> dict[str, np.ndarray]:
    """Channels that carving reads, one row per observation unless noted.

    Args:
      readings: `MetaWorldEnv.signals()` of each observation.
      gripper_command: of each step.
      joint_kinds: MuJoCo type of each task joint.

    Returns:
      contact, hold: bool (both pads on the object while told to close);
      gripper_opening: float32, 0..1; gripper_command: float32[steps];
      hand_position, object_position: float32[., 3], metres, the object being the
      task body that moves most; joint_position: float32, m or rad (zeros for a
      free joint or none); joint_kind: int, -1 when nothing moved;
      goal_position: float32[3].
    """
    columns = {key: np.array([r[key] for r in readings]) for key in readings[0]}
    # Observation t comes before step t; nothing follows the last one.
    closing = np.append(gripper_command, gripper_command[-1:]) > 0
    moved = columns["body_positions"]
    travel = np.linalg.norm(moved - moved[:1], axis=-1).max(axis=0)
    kind, coordinate = _main_joint(columns["joint_positions"], joint_kinds)
    return {
        "contact": columns["contact"],
        "hold": columns["both_pads"] & closing,
        "gripper_opening": columns["gripper_opening"].astype(np.float32),
        "gripper_command": gripper_command,
        "hand_position": columns["hand_position"].astype(np.float32),
        "object_position": moved[:, travel.argmax()].astype(np.float32),
        "joint_position": coordinate.astype(np.float32),
        "joint_kind": np.array(kind),
        "goal_position": columns["goal_position"][-1].astype(np.float32),
    }


def _main_joint(
    positions: Float[np.ndarray, "observations joints 3"], kinds: tuple[int, ...]
) -> tuple[int, Float[np.ndarray, "observations"]]:
    """Kind and coordinate of the joint that moves most, in units of its threshold.

    Not the one that moves first: a hand on its way to the mug may brush the
    button of the coffee machine.
    """
    far = np.linalg.norm(positions - positions[:1], axis=-1).max(axis=0)
    travel = far / np.array([_TRAVEL[kind] for kind in kinds])
    if not len(kinds) or travel.max() < 1:
        return NOTHING_MOVED, np.zeros(len(positions))
    joint = int(travel.argmax())
    # A free body has no single coordinate; its path is `object_position`.
    coordinate = np.zeros(len(positions)) if kinds[joint] == FREE else positions[:, joint, 0]
    return kinds[joint], coordinate
