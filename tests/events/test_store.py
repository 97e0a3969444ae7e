"""Stores: round trip, atomicity, and every kind of damage seen."""

import dataclasses
import json
import pickle
import shutil

import numpy as np
import pytest

from wallwm_jax.events import build, carve, coding, manifest
from wallwm_jax.events.store import EventWriter, StoreError, open_store, read_manifest


def _events(episode):
    return build.events_of(episode, carve.carve(episode))


@pytest.fixture
def folder(pull, tmp_path):
    """A store with two training episodes, one test episode and one skipped one."""
    with EventWriter(tmp_path / "store", settings={"note": "toy"}) as writer:
        for seed, split in ((0, "train"), (1, "train"), (200, "test")):
            for event in _events(pull(seed)):
                writer.add(event, split)
        writer.skip("toy/pull/000002", "the expert failed")
    return tmp_path / "store"


def test_events_survive_the_round_trip(pull, folder):
    store = open_store(folder, "train")
    events = _events(pull(0)) + _events(pull(1))
    assert len(store) == len(events)
    for i, want in enumerate(events):
        have = store[i]
        for field in dataclasses.fields(want):
            if field.name != "frames":
                np.testing.assert_equal(getattr(have, field.name), getattr(want, field.name))
        for view, images in want.frames.items():
            error = images.astype(float) - have.frames[view]
            assert have.frames[view].shape == images.shape
            assert np.abs(error).mean() < 6  # JPEG of flat squares


def test_index_says_the_same_as_the_events(folder):
    store = open_store(folder, "train")
    index = store.index
    for i in range(len(store)):
        event = store[i]
        assert index.length[i] == event.length
        assert 1 + 4 * (index.latent_frames[i] - 1) == len(event.frames["ego"])
        assert index.remaining_seconds[i] == event.remaining_seconds
        assert store.tasks[index.task[i]] == event.task
        assert store.labels[index.label[i]] == event.label
        assert store.episodes[index.episode[i]] == event.episode_id
        assert store.captions[index.caption[i]] == event.captions["action"]
        assert store.captions[index.segment[i]] == event.captions["segment"]
        assert store.captions[index.next_caption[i]] == event.next_caption


def test_ids_are_shared_by_all_splits(folder):
    train, test = open_store(folder, "train"), open_store(folder, "test")
    assert train.captions == test.captions and train.episodes == test.episodes
    assert set(test.episodes[i] for i in test.index.episode) == {"toy/pull/000200"}


def test_manifest_counts(folder):
    page = read_manifest(folder)
    assert page.splits["train"]["episodes"] == 2 and page.splits["test"]["episodes"] == 1
    total = sum(split["events"] for split in page.splits.values())
    assert total == sum(shard.records for shard in page.shards)
    assert page.views == ["ego", "wrist"] and page.image_size == 16 and page.control_hz == 40.0
    assert page.skipped == [{"episode": "toy/pull/000002", "reason": "the expert failed"}]
    assert page.event_length["p5"] <= page.event_length["p50"] <= page.event_length["max"]


def test_equal_events_give_equal_files(pull, folder, tmp_path):
    with EventWriter(tmp_path / "again", settings={"note": "toy"}) as writer:
        for seed, split in ((0, "train"), (1, "train"), (200, "test")):
            for event in _events(pull(seed)):
                writer.add(event, split)
        writer.skip("toy/pull/000002", "the expert failed")
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_a_pickled_store_opens_its_own_readers(folder):
    store = open_store(folder, "train")
    first = store[0]
    copy = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(copy[0].actions, first.actions)


def test_nothing_appears_when_writing_fails(pull, tmp_path):
    good, bad = _events(pull(0))[:2]
    bad = dataclasses.replace(bad, actions=bad.actions[:-1])
    with pytest.raises(ValueError, match="toy/pull/000000, event 1: actions has .* rows"):
        with EventWriter(tmp_path / "store") as writer:
            writer.add(good)
            writer.add(bad)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_left_alone(folder):
    with pytest.raises(StoreError, match="already exists; remove it"):
        EventWriter(folder)
    assert len(open_store(folder, "train"))


def test_an_unwritable_place_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write .*choose a writable folder") as caught:
        EventWriter(tmp_path / "file" / "store")
    assert "\n" not in str(caught.value)


def test_other_views_in_one_shard_are_refused(pull, tmp_path):
    event = _events(pull(0))[0]
    other = dataclasses.replace(
        event,
        frames={"ego": event.frames["ego"]},
        intrinsics={"ego": event.intrinsics["ego"]},
        extrinsics={"ego": event.extrinsics["ego"]},
    )
    with pytest.raises(ValueError, match="keep different set-ups in different stores"):
        with EventWriter(tmp_path / "store") as writer:
            writer.add(event)
            writer.add(other)


def test_no_store_no_split(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="prepare_data"):
        open_store(tmp_path, "train")
    with pytest.raises(StoreError, match=r"no split 'val'; it has \['test', 'train'\]"):
        open_store(folder, "val")


def test_a_missing_shard_is_named(folder):
    (folder / "train.array_record").unlink()
    with pytest.raises(StoreError, match="train.array_record is missing"):
        open_store(folder, "train")


def test_a_truncated_shard_is_named(folder):
    path = folder / "train.array_record"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(StoreError, match="train.array_record is damaged"):
        open_store(folder, "train")
    with pytest.raises(StoreError, match="truncated|damaged"):
        open_store(folder, "train", verify=False)[0]


def test_no_flipped_bit_passes(folder, tmp_path):
    """Any single flip, in any file of the store, is reported and names the file."""
    rng = np.random.default_rng(0)
    names = sorted(path.name for path in folder.iterdir() if path.name != manifest.MANIFEST)
    for trial in range(40):
        name = names[trial % len(names)]
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        data = bytearray((copy / name).read_bytes())
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        (copy / name).write_bytes(data)
        split = "test" if name.startswith("test") else "train"
        with pytest.raises(StoreError, match=f"{name} is damaged"):
            open_store(copy, split)
        shutil.rmtree(copy)


def test_unverified_damage_still_names_the_record(folder):
    path = folder / "train.array_record"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    store = open_store(folder, "train", verify=False)
    with pytest.raises(StoreError, match=r"train.array_record, record \d+, is damaged"):
        [store[i] for i in range(len(store))]


def test_a_shard_outside_the_folder_is_refused(folder):
    page = json.loads((folder / manifest.MANIFEST).read_text())
    page["shards"][0]["path"] = "../elsewhere.array_record"
    (folder / manifest.MANIFEST).write_text(json.dumps(page))
    with pytest.raises(StoreError, match="outside the store; refused"):
        open_store(folder, "train")


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"format": "other"}', '{"format": "wallwm-events", "version": 1}']
)
def test_a_damaged_manifest_is_one_line(folder, text):
    (folder / manifest.MANIFEST).write_text(text)
    with pytest.raises(StoreError, match="manifest.json") as caught:
        open_store(folder, "train")
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_event():
    with pytest.raises(ValueError, match="not an event record"):
        coding.decode_event(b"\x93\x01\x02\x03")
    with pytest.raises(ValueError, match="not an event record"):
        coding.decode_event(b"\xc1 not msgpack")
