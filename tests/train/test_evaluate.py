"""Offline evaluation of a trained toy run, end to end, and what it must not do."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.evaluate import offline, policy_of
from wallwm_jax.evaluate.data_report import packing, timelines
from wallwm_jax.evaluate.offline import batches, partners_of, predict, with_observations
from wallwm_jax.evaluate.run import open_split
from wallwm_jax.train import build
from wallwm_jax.train.encode import open_encoded


@pytest.fixture(scope="module")
def held_out(trained):
    folder = Path(trained.workdir)
    return open_split(folder / "dataset", folder / "encoded", "test")


def test_partners_are_other_episodes_of_the_same_task(held_out):
    index = held_out.events.index
    partner = partners_of(held_out.events)
    assert np.all(index.episode[partner] != index.episode)
    assert np.all(index.task[partner] == index.task)
    assert np.all(index.caption[partner] == index.caption)


def test_swapping_the_observation_swaps_nothing_else(trained, held_out):
    policy = policy_of(trained, 4)
    batch = next(batches(policy, held_out))
    other = with_observations(policy, held_out, batch, np.array([3, 4, 5, 6]), swap_state=False)
    observed = np.asarray(batch.frame_index == 0)
    assert np.abs(np.asarray(other.latents - batch.latents))[:, :, 0].max() > 0
    keep = ~observed[:, None, :, None, None, None]
    np.testing.assert_array_equal(
        np.where(keep, other.latents, 0), np.where(keep, batch.latents, 0)
    )
    np.testing.assert_array_equal(other.state, batch.state)
    np.testing.assert_array_equal(other.text, batch.text)


def test_predictions_are_repeatable_and_as_long_as_their_events(trained, held_out):
    policy = policy_of(trained, 1)
    one = predict(policy, held_out, jax.random.key(0))
    assert [len(p) for p in one] == held_out.events.index.length.tolist()
    assert all(np.isfinite(p).all() for p in one)
    again = predict(policy, held_out, jax.random.key(0))
    for a, b in zip(one, again, strict=True):
        np.testing.assert_array_equal(a, b)


def test_offline_report_is_whole_and_reused(trained):
    page = offline(trained)
    assert {
        "mae",
        "mae_mean_trajectory",
        "mae_mean_caption",
        "mae_hold",
        "mae_wrong_observation",
    } <= page["action"].keys()
    assert all(np.isfinite(v) for part in ("video", "action") for v in page[part].values())
    out = Path(trained.workdir) / "eval"
    stamp = (out / "offline.json").stat().st_mtime_ns
    assert offline(trained) == json.loads(json.dumps(page))
    assert (out / "offline.json").stat().st_mtime_ns == stamp
    with np.load(out / "examples.npz") as file:
        assert file["real"].shape == file["imagined"].shape
        assert len(file["expert"]) == len(json.loads((out / "examples.json").read_text())) == 2


def test_timelines_cover_the_episode_in_every_track(held_out):
    (page,) = timelines(held_out.events)
    assert len(page["speed"]) == len(page["gripper"]) == page["steps"]
    for bars in page["tracks"].values():
        assert bars[0][0] == 0 and bars[-1][1] == page["steps"]
        assert all(a[1] == b[0] for a, b in zip(bars, bars[1:], strict=False))


def test_packing_says_how_full_sequences_are(trained):
    encoded = open_encoded(Path(trained.workdir) / "encoded")
    train = encoded.latents["train"]
    dims = build.build_dims(trained, train)
    page = packing(train, dims, trained.pack.window, trained.seed)
    real = sum(len([s for s in row if s]) for row in page["example"])
    if page["sequences"] == len(page["example"]):
        assert page["video_tokens_real"] == pytest.approx(
            real / (len(page["example"]) * dims.frames)
        )
    assert page["efficiency"] == min(page["video_tokens_real"], page["action_tokens_real"])
