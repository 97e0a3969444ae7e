"""The model of a robot finds offsets where a correlation cannot, and judges no episode by itself."""

import dataclasses

import numpy as np
import pytest
import test_sync

from wallwm_jax.events import sync, sync_lags, sync_model
from wallwm_jax.events.sync_model import Traces

PRIOR = sync_lags.PRIOR_NATS


def glide(seed: int, steps: int = 36, noise: float = 1e-4) -> Traces:
    """An arm on a damped spring; its expert slows down as it comes near its goal."""
    rng = np.random.default_rng(seed)
    hand, speed, command, goal = np.zeros(3), np.zeros(3), np.zeros(3), rng.uniform(0.2, 0.5, 3)
    asked, reached = [command], [hand]
    for _ in range(steps):
        command = command + np.clip(0.15 * (goal - hand), -0.015, 0.015)
        speed = 0.45 * speed + 0.3 * (command - hand) + rng.normal(0, noise, 3)
        hand = hand + speed
        asked, reached = [*asked, command], [*reached, hand]
    columns = {axis: np.array(asked)[:, i] for i, axis in enumerate("xyz")}
    return Traces(commands=columns, state=np.array(reached), partners=dict(zip("xyz", range(3))))


def late(episode: Traces, offset: int, held: bool) -> Traces:
    """Its commands `offset` steps later: the length held, or the ends cut off."""
    count = len(episode.state)
    rows = np.arange(count) - offset
    kept = np.ones(count, bool) if held else (rows >= 0) & (rows < count)
    taken = np.clip(rows, 0, count - 1)[kept]
    commands = {name: c[taken] for name, c in episode.commands.items()}
    return dataclasses.replace(episode, commands=commands, state=episode.state[kept])


@pytest.mark.parametrize("held", [True, False], ids=["held", "cut"])
def test_a_glide_that_fits_itself_at_every_lag_is_told_by_its_gain(held):
    others = [glide(seed) for seed in range(5)]
    model = sync_model.learn(others, [0] * 5, 1)
    for seed in range(10, 14):
        for offset in range(-5, 6):
            fit = sync_model.judge(model, late(glide(seed), offset, held), PRIOR)
            assert fit.offset == offset and not sync_lags.doubt(fit)


def test_a_model_of_shifted_episodes_is_that_of_the_same_ones_shifted_back():
    episodes, offsets = [glide(seed) for seed in range(4)], [2, 0, -3, 1]
    moved = [late(e, o, False) for e, o in zip(episodes, offsets, strict=True)]
    first = sync_model.learn(moved, offsets, 1)
    # The same steps, with the same commands beside them.
    kept = [late(late(e, o, False), -o, False) for e, o in zip(episodes, offsets, strict=True)]
    second = sync_model.learn(kept, [0] * 4, 1)
    for a, b in zip(first.answers, second.answers, strict=True):
        np.testing.assert_allclose(a.weights[:5], b.weights[:5], atol=0.02)
        assert a.partner == b.partner


def test_little_motion_is_said_before_anything_is_compared():
    model = sync_model.learn([glide(seed) for seed in range(5)], [0] * 5, 1)
    still = glide(7)
    still = dataclasses.replace(
        still,
        commands={n: c[:1] + 1e-3 * (c - c[:1]) for n, c in still.commands.items()},
        state=still.state[:1] + 1e-3 * (still.state - still.state[:1]),
    )
    fit = sync_model.judge(model, still, PRIOR)
    assert fit.motion < sync_lags.MOTION_NATS < sync_model.judge(model, glide(7), PRIOR).motion
    # Motion is of the commands and the robot, wherever the commands lie.
    moved = sync_model.judge(model, late(glide(7), 3, True), PRIOR)
    assert moved.motion > sync_lags.MOTION_NATS and sync_lags.doubt(fit)


def test_no_column_in_common_is_no_fit():
    model = sync_model.learn([glide(seed) for seed in range(3)], [0] * 3, 1)
    nothing = Traces(commands={}, state=np.zeros((40, 3)), partners={})
    assert sync_model.judge(model, nothing, PRIOR) is None
    assert sync_model.learn([], [], 0) is None


@pytest.fixture(scope="module")
def dots():
    return [test_sync.dot_episode(30 + seed, steps=120) for seed in range(5)]


def test_a_set_with_one_in_five_off_is_mended_and_nothing_else_moves(dots):
    for offset in (-4, 3):
        mixed = [sync.shift(dots[0], offset), *dots[1:]]
        results = [sync.measure(e) for e in mixed]
        natural = sync.natural_lags(results)
        made = [
            sync.synchronise(e, natural, result=r)[1] for e, r in zip(mixed, results, strict=True)
        ]
        assert [d.numbers.get("shift", 0) for d in made] == [-offset, 0, 0, 0, 0]
        assert [d.verdict for d in made] == ["changed"] + 4 * ["kept"]


def test_a_set_that_is_off_throughout_is_moved_only_where_effects_precede_causes(dots):
    """The hand is 2 steps late by nature: 6 is a lag like any other, -3 is none."""
    for offset, undone in ((-4, 0), (5, -3)):
        mixed = [sync.shift(e, offset) for e in dots]
        results = [sync.measure(e) for e in mixed]
        natural = sync.natural_lags(results)
        made = sync.synchronise(mixed[0], natural, result=results[0])[1]
        assert made.passes and made.numbers.get("shift", 0) == undone


def test_two_that_disagree_have_no_natural_lag(dots):
    mixed = [sync.measure(dots[0]), sync.measure(sync.shift(dots[1], 4))]
    assert sync.natural_lags(mixed) is None
