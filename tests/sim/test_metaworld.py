"""The environment: resets, commands, saved states."""

import numpy as np
import pytest

from wallwm_jax.sim import scene
from wallwm_jax.sim.experts import Expert
from wallwm_jax.sim.metaworld import MetaWorldEnv


def _trace(env, seed, steps=25):
    """Observations, signals and physics over a noisy expert episode."""
    env.reset(seed)
    expert = Expert(env.task, noise=0.2, seed=seed)
    seen, rows = [], []
    for _ in range(steps):
        observation, signals = env.observe(), env.signals()
        seen.append(list(observation.frames.values()))
        numbers = [observation.state, signals["main_object"], signals["goal_position"]]
        rows.append(np.concatenate([*numbers, env.data.qpos, env.data.qvel]))
        env.step(*expert.act(env))
    return np.array(seen), np.stack(rows)


@pytest.mark.parametrize("task", ["coffee-pull", "door-open"])
def test_a_used_environment_equals_a_fresh_one(physics_env, task):
    used = physics_env(task)
    for seed in (11, 12):  # leave traces of other seeds behind
        _trace(used, seed)
    with MetaWorldEnv(task, views=()) as fresh:
        np.testing.assert_array_equal(_trace(used, 5)[1], _trace(fresh, 5)[1])
    assert not np.array_equal(_trace(used, 5)[1], _trace(used, 6)[1])


def test_pictures_too_and_rendering_leaves_physics_alone(rendering_env, physics_env):
    used = rendering_env("drawer-open")
    _trace(used, 11, steps=3)
    with MetaWorldEnv("drawer-open") as fresh:
        np.testing.assert_array_equal(_trace(used, 5)[0], _trace(fresh, 5)[0])
    np.testing.assert_array_equal(_trace(used, 5)[1], _trace(physics_env("drawer-open"), 5)[1])


def test_the_first_observation_shows_the_layout_of_its_own_seed(physics_env):
    env = physics_env("drawer-open")
    for seed in (1, 2):
        env.reset(seed)
        # Stale poses from before the drawer was moved would differ from the body's.
        handle = env.data.body("drawer_link").xpos + [0.0, -0.16, 0.0]
        np.testing.assert_allclose(env.signals()["main_object"], handle, atol=1e-9)


def test_a_command_within_reach_is_met_exactly(physics_env):
    env = physics_env("reach")
    env.reset(0)
    desired = env.target_position + [0.013, -0.02, 0.004]
    env.step(desired, 0.0)
    np.testing.assert_allclose(env.target_position, desired, atol=1e-12)


def test_a_command_out_of_reach_moves_a_centimetre_per_simulator_step(physics_env):
    env = physics_env("reach")
    env.reset(0)
    start = env.target_position
    env.step(start + [0.05, 0.0, 0.0], 0.0)
    np.testing.assert_allclose(env.target_position, start + [0.02, 0.0, 0.0], atol=1e-12)


def test_state_vector_says_what_its_docstring_says(physics_env):
    env = physics_env("reach")
    env.reset(0)
    start = env.observe()
    np.testing.assert_array_equal(start.state[7:], [0, 0, 0, -1])  # nothing commanded yet
    env.step(start.target_position + [0.01, 0.0, -0.02], 3.0)
    now = env.observe()
    hand = env.data.body("hand").xpos
    np.testing.assert_allclose(now.state[:3], hand, rtol=1e-6)
    assert 0 <= now.state[3] <= 1
    np.testing.assert_allclose(now.state[4:7], 10 * (now.target_position - hand), atol=1e-6)
    np.testing.assert_allclose(now.state[7:], [1, 0, -2, 1], atol=1e-6)  # cm; clipped gripper
    assert now.gripper == 1.0


def test_a_saved_state_continues_bit_for_bit(physics_env):
    env = physics_env("push")
    env.reset(4)
    expert = Expert("push")
    for _ in range(22):  # into contact, where the solver's warm start matters
        env.step(*expert.act(env))
    state = env.save_state()
    commands = [expert.act(env)] * 10

    def go_on():
        for command in commands:
            env.step(*command)
        return np.concatenate([env.data.qpos, env.observe().state, env.expert_observation])

    first = go_on()
    env.reset(9)
    env.load_state(state)
    np.testing.assert_array_equal(go_on(), first)


def test_wrong_names_and_commands_are_refused(physics_env):
    with pytest.raises(ValueError, match="unknown task 'fly'.*reach"):
        MetaWorldEnv("fly")
    with pytest.raises(ValueError, match="unknown view 'top'.*ego, side, wrist"):
        MetaWorldEnv("reach", views=("top",))
    with pytest.raises(ValueError, match="reach.*not finite"):
        physics_env("reach").step(np.array([0.0, np.nan, 0.0]), 0.0)


def test_close_frees_the_renderer_first_and_may_be_repeated(physics_env, monkeypatch):
    env = MetaWorldEnv("reach", views=())
    order = []

    class Renderer:
        def close(self):
            order.append("renderer")

    env._renderer = Renderer()
    monkeypatch.setattr(env._sim, "close", lambda: order.append("simulator"))
    env.close()
    env.close()
    assert order == ["renderer", "simulator", "simulator"]


def test_three_views_are_standard():
    assert scene.VIEWS == ("ego", "side", "wrist")
