"""The closed loop: planner, execution, records."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from toy_episode import pull_episode

from wallwm_jax.events.build import events_of
from wallwm_jax.events.carve import carve
from wallwm_jax.events.store import EventWriter, open_store
from wallwm_jax.rollout.event_mode import run_events, run_random
from wallwm_jax.rollout.planner import PlannedEvent, ScriptPlanner
from wallwm_jax.rollout.policy import Trajectory


@dataclasses.dataclass
class Result:
    success: bool


@dataclasses.dataclass
class Observation:
    frames: dict
    state: np.ndarray
    target_position: np.ndarray
    target_rotation: np.ndarray


class Line:
    """A world on a line: success once the target has moved one metre in x."""

    def __init__(self):
        self.target_position = np.zeros(3)
        self.observed, self.grippers = 0, []

    def observe(self) -> Observation:
        self.observed += 1
        picture = np.full((2, 2, 3), min(255, int(100 * self.target_position[0])), np.uint8)
        return Observation({"ego": picture}, np.zeros(2), self.target_position.copy(), np.eye(3))

    def step(self, desired_position, gripper) -> Result:
        self.target_position = np.asarray(desired_position, float)
        self.grippers.append(gripper)
        return Result(bool(self.target_position[0] >= 0.999))

    def score(self, result) -> float:
        return 100.0 if result.success else 100 * float(self.target_position[0])


def forward(frames, state, caption, steps, position, rotation, key) -> Trajectory:
    """A policy that advances 2 cm a step from where it is."""
    moves = 0.02 * np.arange(1, steps + 1)[:, None] * [1.0, 0, 0]
    return Trajectory(positions=position + moves, gripper=np.full(steps, 3.0))


PLAN = [
    PlannedEvent(caption="go", label="reach", steps=8),
    PlannedEvent(caption="on", label="push", steps=5),
]


def test_events_follow_one_another_until_success():
    world = Line()
    out = run_events(
        world,
        forward,
        itertools.cycle(PLAN),
        world.score,
        max_steps=99,
        key=jax.random.key(0),
        film="ego",
        film_every=4,
    )
    assert out.success and out.progress == 100 and out.steps == 50
    assert [(e.caption, e.start, e.end) for e in out.events[:3]] == [
        ("go", 0, 8),
        ("on", 8, 13),
        ("go", 13, 21),
    ]
    assert out.events[-1].end == 50
    assert out.frame_step == [*range(0, 50, 4), 50] and out.frame_event[0] == 0
    assert len(out.frames) == len(out.frame_event)
    assert max(world.grippers) == 1.0  # commands are clipped to the gripper's range


def test_the_budget_ends_an_episode_inside_an_event():
    world = Line()
    out = run_events(
        world, forward, itertools.cycle(PLAN), world.score, max_steps=10, key=jax.random.key(0)
    )
    assert not out.success and out.steps == 10
    assert [(e.start, e.end) for e in out.events] == [(0, 8), (8, 10)]
    assert out.events[-1].progress == pytest.approx(20.0)


def test_a_random_policy_gets_what_it_gets():
    world = Line()
    assert 0 <= run_random(world, lambda r: abs(world.score(r)), max_steps=30, seed=1) < 50


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "dataset"
    with EventWriter(folder) as writer:
        for seed, tail in ((0, 6), (1, 8), (2, 10)):
            episode = pull_episode(seed, tail=tail)
            for event in events_of(episode, carve(episode)):
                writer.add(event)
    return open_store(folder, "train")


def test_the_script_is_what_training_did_most_often(store):
    script = ScriptPlanner.from_store(store).scripts["pull"]
    index = store.index
    rows = np.flatnonzero(index.seed == 1)
    rows = rows[np.argsort(index.event[rows])]
    assert [e.caption for e in script] == [store.captions[int(c)] for c in index.caption[rows]]
    last = [int(index.length[np.flatnonzero(index.seed == s)][-1]) for s in (0, 1, 2)]
    assert script[-1].steps == int(np.median(last))


def test_an_unfinished_task_is_tried_again_from_the_last_approach(store):
    planner = ScriptPlanner.from_store(store)
    script = planner.scripts["pull"]
    named = list(itertools.islice(planner.events("pull"), 3 * len(script)))
    assert named[: len(script)] == list(script)
    assert named[len(script)].label in ("align", "approach", "reach")
    with pytest.raises(ValueError, match="'dance'.*pull"):
        next(planner.events("dance"))
