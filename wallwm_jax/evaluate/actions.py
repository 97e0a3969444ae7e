"""How far predicted trajectories are from the expert's, and from what baselines.

Errors are mean absolute errors over real steps and existing dimensions, in
units of each dimension's deviation in training (so metres and gripper weigh
alike). Baselines that know no observation:

    mean_trajectory   the average training trajectory of the event's label,
                      stretched to the event's length
    mean_caption      the same per caption, which nearly names the task
    hold              stay where you are, gripper as it was
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float

GRID = 33
"""Points a trajectory is resampled to before averaging; phase 0..1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActionTruth:
    """Expert trajectories of some events, raw units.

    Attributes:
      actions: one [L_e, 20] array per event.
      masks: existing dimensions per event.
      labels, captions: per event.
      last_gripper: gripper command before the event.
    """

    actions: list[Float[np.ndarray, "_ 20"]]
    masks: list[Bool[np.ndarray, "20"]]
    labels: list[str]
    captions: list[str]
    last_gripper: list[float]


def resample(trajectory: Float[np.ndarray, "a d"], count: int) -> Float[np.ndarray, "count d"]:
    """Linear interpolation at `count` evenly spaced phases, ends included."""
    old = np.linspace(0.0, 1.0, len(trajectory))
    new = np.linspace(0.0, 1.0, count)
    return np.stack([np.interp(new, old, column) for column in trajectory.T], axis=1)


def mean_trajectories(
    truth: ActionTruth, keys: list[str]
) -> dict[str, Float[np.ndarray, "grid 20"]]:
    """key -> average trajectory over phase, of events with that key."""
    groups: dict[str, list[np.ndarray]] = {}
    for key, actions in zip(keys, truth.actions, strict=True):
        groups.setdefault(key, []).append(resample(actions, GRID))
    return {key: np.mean(group, axis=0) for key, group in groups.items()}


def from_means(
    means: dict[str, Float[np.ndarray, "grid 20"]], keys: list[str], truth: ActionTruth
) -> list[Float[np.ndarray, "_ 20"]]:
    """Each event's mean trajectory, stretched to its length; unknown keys get the overall mean."""
    overall = np.mean(list(means.values()), axis=0)
    return [
        resample(means.get(key, overall), len(actions))
        for key, actions in zip(keys, truth.actions, strict=True)
    ]


def holds(truth: ActionTruth) -> list[Float[np.ndarray, "_ 20"]]:
    """No motion, the gripper as it was."""
    held = []
    for actions, gripper in zip(truth.actions, truth.last_gripper, strict=True):
        still = np.zeros_like(actions)
        still[:, 9] = gripper
        held.append(still)
    return held


def mean_absolute_error(
    predicted: list[Float[np.ndarray, "_ 20"]], truth: ActionTruth, std: Float[np.ndarray, "20"]
) -> float:
    """MAE in training deviations, over all real steps and existing dimensions."""
    total, count = 0.0, 0
    for guess, actions, mask in zip(predicted, truth.actions, truth.masks, strict=True):
        error = np.abs(guess - actions)[:, mask] / std[mask]
        total, count = total + float(error.sum()), count + error.size
    return total / count


def position_error_cm(predicted: list[Float[np.ndarray, "_ 20"]], truth: ActionTruth) -> float:
    """Mean distance between predicted and expert positions, centimetres."""
    errors = [
        np.linalg.norm((guess - actions)[:, :3], axis=-1)
        for guess, actions in zip(predicted, truth.actions, strict=True)
    ]
    return 100 * float(np.concatenate(errors).mean())


def gripper_error(predicted: list[Float[np.ndarray, "_ 20"]], truth: ActionTruth) -> float:
    """Mean absolute error of the gripper command, on its scale of -1..1."""
    errors = [
        np.abs(guess - actions)[:, 9]
        for guess, actions in zip(predicted, truth.actions, strict=True)
    ]
    return float(np.concatenate(errors).mean())
