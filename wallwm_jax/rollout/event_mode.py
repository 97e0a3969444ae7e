"""Event mode in closed loop (method section 4).

    planner names the next event -> the model imagines it and acts
        -> its trajectory is executed -> a new observation is taken

until the task succeeds or the budget of control steps is spent.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import UInt8

from wallwm_jax.rollout.planner import PlannedEvent
from wallwm_jax.rollout.policy import Trajectory


@runtime_checkable
class World(Protocol):
    """What a rollout needs of a simulator or robot (see `sim.metaworld`)."""

    target_position: np.ndarray

    def observe(self) -> Any:
        """Pictures, proprioception and commanded pose now."""
        ...

    def step(self, desired_position: np.ndarray, gripper: float) -> Any:
        """Executes one control step; the result has `.success`."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class EventRecord:
    """What happened in one executed event; steps count from the episode's start."""

    caption: str
    label: str
    start: int
    end: int
    progress: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollout:
    """One episode.

    Attributes:
      frames: pictures of the recorded view, if asked for, and for each the
        index of the event under way and the control step.
    """

    success: bool
    progress: float
    steps: int
    events: list[EventRecord]
    frames: UInt8[np.ndarray, "n h w 3"] | None = None
    frame_event: list[int] = dataclasses.field(default_factory=list)
    frame_step: list[int] = dataclasses.field(default_factory=list)


def run_events(
    world: World,
    policy: Callable[..., Trajectory],
    plan: Iterator[PlannedEvent],
    score: Callable[[Any], float],
    *,
    max_steps: int,
    key: jax.Array,
    film: str | None = None,
    film_every: int = 4,
) -> Rollout:
    """Executes planned events until success or the end of the budget.

    Args:
      world: already reset.
      policy: a trained `EventPolicy`, or anything called like one.
      plan: events in order, without end.
      score: Task Progress after a step result, 0..100.
      max_steps: budget in control steps.
      key: of the model's noise.
      film: view to record, or None.
      film_every: control steps between recorded pictures.
    """
    steps, progress, success = 0, 0.0, False
    events: list[EventRecord] = []
    reel: list[tuple[np.ndarray, int, int]] = []
    for number, event in enumerate(plan):
        observation = world.observe()
        trajectory = policy(
            observation.frames,
            observation.state,
            event.caption,
            event.steps,
            observation.target_position,
            observation.target_rotation,
            jax.random.fold_in(key, number),
        )
        start = steps
        for position, gripper in zip(trajectory.positions, trajectory.gripper, strict=True):
            if film is not None and steps % film_every == 0:
                reel.append((world.observe().frames[film], number, steps))
            result = world.step(np.asarray(position, np.float64), float(np.clip(gripper, -1, 1)))
            steps += 1
            progress, success = score(result), success or result.success
            if success or steps >= max_steps:
                break
        events.append(
            EventRecord(
                caption=event.caption, label=event.label, start=start, end=steps, progress=progress
            )
        )
        if success or steps >= max_steps:
            break
    if film is not None:
        reel.append((world.observe().frames[film], len(events) - 1, steps))
    return Rollout(
        success=success,
        progress=progress,
        steps=steps,
        events=events,
        frames=np.stack([frame for frame, _, _ in reel]) if reel else None,
        frame_event=[event for _, event, _ in reel],
        frame_step=[step for _, _, step in reel],
    )


def run_random(
    world: World, score: Callable[[Any], float], *, max_steps: int, seed: int, reach: float = 0.02
) -> float:
    """Task Progress of a policy that moves at random: the floor of the score.

    Args:
      reach: largest displacement of the target per control step and axis, metres
        (what one control step of the simulator can execute).
    """
    rng = np.random.default_rng(seed)
    progress = 0.0
    for _ in range(max_steps):
        result = world.step(
            world.target_position + rng.uniform(-reach, reach, 3), float(rng.uniform(-1, 1))
        )
        progress = score(result)
        if result.success:
            break
    return progress
