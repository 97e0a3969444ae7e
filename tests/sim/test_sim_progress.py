"""Task Progress: the rubric by hand, and who earns how much of it."""

import numpy as np
import pytest

from wallwm_jax.sim.experts import Expert
from wallwm_jax.sim.metaworld import StepResult
from wallwm_jax.sim.progress import TaskProgress
from wallwm_jax.sim.tasks import TaskSpec


class FakeEnv:
    """A hand on a line: the object at 1 m, `hand` and `contact` set by the test."""

    def __init__(self, **fields):
        self.spec = TaskSpec("fake", "do it", "thing", **fields)
        self.hand, self.contact = 0.0, False

    def signals(self):
        return {
            "hand_position": np.array([self.hand, 0, 0]),
            "main_object": np.array([1.0, 0, 0]),
            "goal_position": np.array([1.5, 0, 0]),
            "contact": self.contact,
        }


def _result(distance, success=False):
    return StepResult(success=success, info={"obj_to_target": distance})


def test_the_rubric_step_by_step():
    env = FakeEnv()
    progress = TaskProgress(env)
    assert progress.value == 0
    env.hand = 0.475  # half of the way to 5 cm from the object
    assert progress.update(_result(0.52)) == pytest.approx(7.5)
    env.hand = 0.0
    assert progress.update(_result(0.02)) == pytest.approx(7.5)  # the goal moved, untouched
    env.contact = True
    assert progress.update(_result(0.52)) == pytest.approx(30)
    assert progress.update(_result(0.27)) == pytest.approx(60)  # half of 0.52 .. 0.02
    env.contact = False
    assert progress.update(_result(0.52)) == pytest.approx(60)  # best so far
    assert progress.update(_result(0.02)) == pytest.approx(90)
    assert progress.update(_result(0.02, success=True)) == 100
    assert progress.update(_result(0.52)) == 100


def test_nothing_to_touch_scores_by_distance_alone():
    progress = TaskProgress(FakeEnv(touches=False))
    progress.update(_result(0.52))
    assert progress.update(_result(0.27)) == pytest.approx(45)


def test_own_distance_ignores_what_the_simulator_reports():
    env = FakeEnv(own_distance=True)
    env.contact = True
    progress = TaskProgress(env)
    assert progress.update(_result(0.0)) == pytest.approx(30)  # the object has not moved


@pytest.mark.parametrize("task", ["reach", "drawer-open", "pick-out-of-hole"])
def test_expert_half_way_and_random(physics_env, task):
    env = physics_env(task)
    env.reset(200)
    progress, expert, track = TaskProgress(env), Expert(task), []
    while progress.value < 100 and len(track) < 160:
        track.append(progress.update(env.step(*expert.act(env))))
    assert track[-1] == 100
    assert track == sorted(track)
    assert track[len(track) // 2] < 90
    scores = [_random_score(env, seed) for seed in range(200, 204)]
    assert np.mean(scores) < 25


def _random_score(env, seed, steps=80):
    rng = np.random.default_rng(seed)
    env.reset(seed)
    progress = TaskProgress(env)
    for move in rng.uniform(-1, 1, (steps, 4)):
        progress.update(env.step(env.target_position + 0.02 * move[:3], move[3]))
    return progress.value
