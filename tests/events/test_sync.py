"""A known offset comes back as it was; what cannot be told is quarantined, not guessed.

The recovery table over many episodes is experiments.benchmark.sync_recovery.
"""

import dataclasses

import numpy as np
import pytest

from wallwm_jax.episodes import action_space
from wallwm_jax.episodes.record import Annotation, Camera, Episode
from wallwm_jax.episodes.source import open_source
from wallwm_jax.events import sync, sync_evidence, sync_limbs, sync_motion

HZ, SIZE = 30.0, 32


def wander(seed, steps, low=0.15, high=0.85):
    """A path [steps + 1, 3] that goes, stops and turns at random times."""
    rng = np.random.default_rng(seed)
    goal, goals = rng.uniform(low, high, 3), []
    while len(goals) <= steps:
        goal = np.where(rng.random(3) < 0.7, rng.uniform(low, high, 3), goal)
        goals += [goal] * int(rng.integers(5, 25))
    path = [np.array(goals[0])]
    for target in goals[1 : steps + 1]:
        path.append(path[-1] + np.clip(target - path[-1], -0.04, 0.04))
    return np.array(path)


def dot_episode(seed=0, steps=240, follow=2, task="dot") -> Episode:
    """A hand that repeats its command `follow` steps later, seen by two cameras as a blob."""
    command = wander(seed, steps)
    hand = command[np.maximum(np.arange(steps + 1) - follow, 0)]
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    floor = np.random.default_rng(0).uniform(0, 60, (SIZE, SIZE))
    frames = {}
    for view, (a, b) in {"front": (0, 2), "top": (0, 1)}.items():
        near = (x - hand[:, a, None, None]) ** 2 + (y - hand[:, b, None, None]) ** 2
        grey = floor + 180 * np.exp(-near / 0.01)
        frames[view] = np.repeat(grey[..., None], 3, -1).astype(np.uint8)
    return Episode(
        episode_id=f"dot/{seed}", task=task, seed=seed, embodiment="sawyer", instruction="",
        control_hz=HZ, success=None, frames=frames,
        cameras={"top": Camera(
            intrinsics=np.eye(3),
            extrinsics=np.tile(np.eye(4), (steps + 1, 1, 1)) * np.arange(steps + 1)[:, None, None],
        )},
        state=hand.astype(np.float32),
        target_position=command[:, None].astype(np.float32),
        target_rotation=np.tile(np.eye(3, dtype=np.float32), (steps + 1, 1, 1, 1)),
        gripper_command=np.sin(np.arange(steps))[:, None].astype(np.float32),
        action_mask=action_space.action_mask("sawyer"),
        signals={"row": np.arange(steps + 1), "kind": np.array(3)}, nouns={},
        annotations=(Annotation(start=50, end=90, text="go", track="action"),),
    )  # fmt: skip


@pytest.fixture(scope="module")
def dots():
    return [dot_episode(seed) for seed in range(6)]


@pytest.fixture(scope="module")
def natural(dots):
    return sync.natural_lags(sync.measure(e) for e in dots)


@pytest.mark.parametrize("state", [0, 1], ids=["actions", "actions and state"])
def test_every_offset_is_measured_exactly(dots, state):
    for episode in dots[:2]:
        base = sync.measure(episode)
        assert base.trouble == ""
        for k in range(-5, 6):
            moved = sync.measure(sync.shift(episode, k, k * state))
            assert round(base.lag - moved.lag) == k


def test_a_slip_is_undone_and_a_natural_lag_is_not(dots, natural):
    """The hand of these episodes is always late: that is their robot, no error."""
    assert natural.followed >= 1 and natural.episodes == len(dots)
    for episode in dots[:3]:
        same, kept = sync.synchronise(episode, natural)
        assert same is episode and kept.verdict == "kept"
        for k in (-5, -2, 2, 4):
            back, made = sync.synchronise(sync.shift(episode, k), natural)
            assert made.verdict == "changed" and made.numbers["shift"] == -k
            # Every stream shows the same instant again.
            first = int(back.signals["row"][0])
            rows = np.arange(first, first + back.steps + 1)
            np.testing.assert_array_equal(back.target_position, episode.target_position[rows])
            np.testing.assert_array_equal(back.state, episode.state[rows])
            np.testing.assert_array_equal(back.frames["top"], episode.frames["top"][rows])


def test_another_episodes_actions_are_quarantined(dots, natural):
    for one, other in zip(dots, dots[1:] + dots[:1], strict=True):
        mixed = dataclasses.replace(one, target_position=other.target_position)
        nothing, decision = sync.synchronise(mixed, natural)
        assert nothing is None and decision.verdict == "quarantined"


def test_what_cannot_be_told_is_quarantined_with_its_reason(natural):
    still = dot_episode(0)
    still = dataclasses.replace(
        still, frames={v: np.repeat(f[:1], len(f), 0) for v, f in still.frames.items()}
    )
    noise = np.random.default_rng(1).integers(0, 255, (241, SIZE, SIZE, 3), np.uint8)
    noisy = dataclasses.replace(dot_episode(0), frames={"top": noise}, cameras={})
    far = sync.shift(dot_episode(0), 10)
    cases = {
        "motion in the pictures": still,
        "votes": noisy,
        "window": far,
        "too short": dot_episode(0, steps=16),
    }
    for words, episode in cases.items():
        nothing, decision = sync.synchronise(episode, natural)
        assert nothing is None and words in decision.reason, decision.reason


def test_which_columns_are_seen_is_known_from_the_data_set(dots, natural):
    """Of one episode alone it would depend on the shift that is looked for."""
    traces = sync.measure(dots[0], motion={}).traces
    path = sync_limbs.body(traces, natural.follower)
    np.testing.assert_array_equal(path, dots[0].state)
    for partners in ({"arm 0 x": 2}, {"arm 0 x": 1, "arm 0 y": 0}):
        misled = dataclasses.replace(traces, partners=partners)
        np.testing.assert_array_equal(sync_limbs.body(misled, natural.follower), path)
        assert sync_limbs.body(misled, None).shape[1] == len(partners)
    alone = dataclasses.replace(traces, partners={})
    assert np.array_equal(sync_limbs.body(alone, None), np.stack([*traces.commands.values()], 1))


def test_a_clock_that_slips_halfway_is_not_moved_as_a_whole(dots, natural):
    """What pictures alone tell is believed where every view and both halves tell it."""
    verdicts = []
    for episode in dots[:3]:
        motion = {v: sync_motion.picture_motion(f) for v, f in episode.frames.items()}
        rows = np.arange(episode.steps)
        slips = {
            "throughout": dict.fromkeys(motion, rows - 3),
            "a third": dict.fromkeys(motion, np.where(rows < 160, rows - 3, rows)),
            "one view": {"front": rows - 3, "top": rows},
        }
        for name, taken in slips.items():
            late = {
                v: sync_motion.PictureMotion(m.change[k], m.drift[k])
                for (v, m), k in zip(
                    motion.items(), (taken[v].clip(0) for v in motion), strict=True
                )
            }
            result = sync.measure(episode, motion=late, natural=natural)
            made = sync.synchronise(episode, natural, result=result)[1]
            verdicts.append((name, made.verdict))
            assert made.verdict != "changed" or (name, made.numbers["shift_state"]) == (
                "throughout",
                3,
            )
    assert ("throughout", "changed") in verdicts


def test_an_arm_that_turns_pictures_another_way_later_is_seen_all_the_same(monkeypatch):
    """Which way a joint turns a picture depends on where the arm is."""
    episode = dot_episode(3, steps=400)
    frames = {
        v: np.concatenate([f[:200], 255 - f[200:, :, ::-1]]) for v, f in episode.frames.items()
    }
    turned = dataclasses.replace(episode, frames=frames)
    parts = sync.measure(turned).seen
    monkeypatch.setattr(sync, "STRETCH", 1000)
    assert parts.lag == 0 and parts.margin > 1.2 * sync.measure(turned).seen.margin


def test_without_a_data_set_nothing_is_shifted(dots):
    assert sync.synchronise(dots[0])[1].verdict == "kept"
    moved, decision = sync.synchronise(sync.shift(dots[0], 6))
    assert moved is None and "natural lag" in decision.reason


def test_natural_lags_are_those_of_most_and_of_a_task_where_there_are_enough(dots):
    slow = [dot_episode(10 + seed, follow=5, task="pull") for seed in range(4)]
    few = [dot_episode(20, follow=5, task="rare")]
    results = [sync.measure(e) for e in dots + slow + few]
    found = sync.natural_by_task(results)
    assert found["pull"].followed - found["dot"].followed == 3
    assert found["rare"] == sync.natural_lags(results)
    slips = [sync.measure(sync.shift(dots[0], 4))]
    assert sync.natural_lags(results[:6] + slips).followed == found["dot"].followed
    assert sync.natural_lags([]) is None


def test_a_shift_moves_each_stream_as_told_and_drops_the_ends():
    episode = dot_episode(0, steps=99)
    moved = sync.shift(episode, 4, -2)
    moved.check()
    rows = np.arange(4, 98)  # observations that pictures, state and actions all have
    np.testing.assert_array_equal(moved.frames["top"], episode.frames["top"][rows])
    np.testing.assert_array_equal(moved.state, episode.state[rows + 2])
    np.testing.assert_array_equal(moved.signals["row"], rows + 2)
    np.testing.assert_array_equal(moved.cameras["top"].extrinsics[:, 1, 1], rows + 2)
    np.testing.assert_array_equal(moved.target_position, episode.target_position[rows - 4])
    np.testing.assert_array_equal(moved.gripper_command, episode.gripper_command[rows[:-1] - 4])
    assert [(n.start, n.end) for n in moved.annotations] == [(46, 86)]
    with pytest.raises(ValueError, match="leaves none"):
        sync.shift(episode, 200)


def test_pictures_are_read_once_in_blocks_and_shrunk():
    class Counted:
        def __init__(self, film):
            self.film, self.shape, self.read, self.most = film, film.shape, 0, 0

        def __len__(self):
            return len(self.film)

        def __getitem__(self, index):
            out = self.film[index]
            self.read, self.most = self.read + len(out), max(self.most, len(out))
            return out

    film = np.random.default_rng(0).integers(0, 255, (150, 96, 128, 3), np.uint8)
    counted = Counted(film)
    moved = sync_motion.picture_motion(counted)
    assert counted.read == len(film) and counted.most <= 64
    small = film.reshape(150, 48, 2, 64, 2, 3).mean((2, 4)) @ [0.299, 0.587, 0.114]
    change = np.abs(np.diff(small, axis=0)).reshape(149, 8, 6, 8, 8).mean((2, 4))
    np.testing.assert_allclose(moved.change, change, rtol=1e-4)


def test_evidence_peaks_where_a_copy_was_put():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 1))
    for lag in (-7, 0, 5):
        y = np.roll(x, lag, axis=0) + rng.normal(size=x.shape)
        r = np.maximum(sync_evidence.correlations(x, y, 10), 0)
        found = sync_evidence.Comparison(curve=tuple(sync_evidence.evidence(x, y, r)[:, 0, 0]))
        assert found.lag == lag and abs(found.place - lag) < 0.5 and found.margin > 5


@pytest.mark.parametrize("name", ["g1_bottle_lerobot_v21", "gr1_sim_lerobot_v20"])
def test_real_clips(real_data, name):
    """No clip as recorded is shifted; a slip of its actions is undone or quarantined."""
    folder = next(p.parent.parent for p in real_data(name).rglob("meta/info.json"))
    source = open_source(folder)
    clips = [source.read(key) for key in source.keys[:4]]
    motion = [{v: sync_motion.picture_motion(f) for v, f in e.frames.items()} for e in clips]
    results = [sync.measure(e, motion=m) for e, m in zip(clips, motion, strict=True)]
    natural, undone = sync.natural_lags(results), 0
    for clip, moved, result in zip(clips, motion, results, strict=True):
        assert sync.synchronise(clip, natural, result=result)[1].verdict != "changed"
        for k in (-3, 2, 4):
            first = max(0, k)
            late = sync.shift(clip, k)
            cut = {v: m.part(first, first + late.steps) for v, m in moved.items()}
            found = sync.measure(late, motion=cut, natural=natural)
            made = sync.synchronise(late, natural, result=found)[1]
            assert made.verdict == "quarantined" or made.numbers["shift"] == -k
            undone += made.passes
    assert undone >= 2 * len(clips)
