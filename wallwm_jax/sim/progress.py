"""Task Progress: partial credit from 0 to 100, the best reached so far.

Rubric: 15 points for coming near the object (in proportion to the distance
closed), 15 for touching it, 60 for the part of the way to the goal that the
object has gone, counted only after a touch; 100 on success. A task without an
object to touch (reach) earns all 90 by the way to the goal.
"""

from typing import Any, Protocol, runtime_checkable

import numpy as np

from wallwm_jax.sim.metaworld import StepResult
from wallwm_jax.sim.tasks import TaskSpec

NEAR, TOUCH, WAY = 15.0, 15.0, 60.0
NEAR_METRES = 0.05  # the hand is this close to the object: full credit for coming near
DONE_METRES = 0.02  # closer to the goal than this is success in most tasks


@runtime_checkable
class Scored(Protocol):
    """What scoring needs of an environment; `MetaWorldEnv` is one."""

    spec: TaskSpec

    def signals(self) -> dict[str, Any]:
        """hand_position, main_object, goal_position (m) and contact."""


class TaskProgress:
    """Scores one episode; make a new one after each reset."""

    def __init__(self, env: Scored) -> None:
        """Takes the start state as reference."""
        self._env = env
        self._far = _to_object(env.signals())
        # The simulator reports its distance to the goal only after a step; no hand
        # can move an object within the first one.
        self._start: float | None = None
        self._near = self._touch = self._way = 0.0
        self._success = False

    def update(self, result: StepResult) -> float:
        """Takes in the step just made; returns the progress so far, 0..100."""
        signals, spec = self._env.signals(), self._env.spec
        to_goal = _to_goal(signals) if spec.own_distance else float(result.info["obj_to_target"])
        self._start = to_goal if self._start is None else self._start
        self._near = max(self._near, _closed(_to_object(signals), self._far, NEAR_METRES))
        self._touch = max(self._touch, float(signals["contact"]))
        if self._touch or not spec.touches:
            self._way = max(self._way, _closed(to_goal, self._start, DONE_METRES))
        self._success |= result.success
        return self.value

    @property
    def value(self) -> float:
        """Progress so far, 0..100."""
        if self._success:
            return 100.0
        if not self._env.spec.touches:
            return (NEAR + TOUCH + WAY) * self._way
        # A touch implies nearness, even where the object's origin is far from its handle.
        return NEAR * max(self._near, self._touch) + TOUCH * self._touch + WAY * self._way


def _to_object(signals: dict[str, Any]) -> float:
    """Distance from the hand to the task object, metres."""
    return float(np.linalg.norm(signals["hand_position"] - signals["main_object"]))


def _to_goal(signals: dict[str, Any]) -> float:
    """Distance from the task object to the goal, metres."""
    return float(np.linalg.norm(signals["main_object"] - signals["goal_position"]))


def _closed(distance: float, start: float, done: float) -> float:
    """Part of the way from `start` down to `done` that has been closed, 0..1."""
    if start <= done:
        return 0.0
    return float(np.clip((start - distance) / (start - done), 0.0, 1.0))
