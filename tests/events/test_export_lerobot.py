"""An exported dataset says what the episodes say, row by row, in the published layout."""

import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from wallwm_jax.episodes.record import NativeActions
from wallwm_jax.episodes.video import VideoFilm
from wallwm_jax.events import carve, export_lerobot
from wallwm_jax.events.export_lerobot import Marked
from wallwm_jax.events.manifest import StoreError
from wallwm_jax.events.retake import retake


def _smooth(episode, seed):
    """Pictures that survive a video codec: the grey level tells episode and frame."""
    level = (40 * seed + 3 * np.arange(episode.steps + 1) + 20).astype(np.uint8)
    films = {
        v: np.broadcast_to(level[:, None, None, None], (len(level), 64, 66, 3))
        for v in episode.frames
    }
    return dataclasses.replace(episode, frames=films, cameras={})


@pytest.fixture
def items(pull):
    """Three toy episodes of unlike lengths with their carved events."""
    out = []
    for seed, tail in enumerate((6, 9, 2)):
        episode = _smooth(pull(seed, tail=tail), seed)
        spans = carve.carve(episode)
        out.append(Marked(episode=episode, spans=spans, captions=[f"do {s.label}" for s in spans]))
    return out


@pytest.fixture
def exported(items, tmp_path):
    export_lerobot.export_lerobot(tmp_path / "set", items)
    return tmp_path / "set"


def test_rows_are_the_episodes_one_after_another(items, exported):
    info = json.loads((exported / "meta/info.json").read_text())
    table = pq.read_table(
        exported / "data/chunk-000/file-000.parquet", page_checksum_verification=True
    )
    assert table.num_rows == info["total_frames"] == sum(i.episode.steps + 1 for i in items)
    rows = table.to_pydict()
    np.testing.assert_array_equal(rows["index"], np.arange(table.num_rows))
    want = np.concatenate([i.episode.state for i in items])
    np.testing.assert_array_equal(np.array(rows["observation.state"], np.float32), want)
    episodes = pq.read_table(exported / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    for item, row in zip(items, episodes, strict=True):
        part = slice(row["dataset_from_index"], row["dataset_to_index"])
        actions = np.array(rows["action"][part], np.float32)
        np.testing.assert_array_equal(actions[:-1, :3], item.episode.target_position[1:, 0])
        np.testing.assert_array_equal(actions[:-1, 9], item.episode.gripper_command[:, 0])
        np.testing.assert_array_equal(actions[-1], actions[-2])
        times = np.array(rows["timestamp"][part])
        np.testing.assert_allclose(times, np.arange(len(times)) / info["fps"], atol=1e-6)


def test_every_row_names_its_event(items, exported):
    texts = pq.read_table(exported / "meta/subtasks.parquet").to_pydict()
    name = dict(zip(texts["subtask_index"], texts["__index_level_0__"], strict=True))
    rows = pq.read_table(exported / "data/chunk-000/file-000.parquet").to_pydict()["subtask_index"]
    first = 0
    for item in items:
        said = [name[i] for i in rows[first : first + item.episode.steps]]
        want = [t for s, t in zip(item.spans, item.captions, strict=True) for _ in range(s.length)]
        assert said == want
        first += item.episode.steps + 1


def test_rows_without_an_event_say_so(pull):
    item = Marked(episode=pull(0), spans=carve.fixed_chunks(pull(0), 8)[1:3], captions=["a", "b"])
    known = {}
    rows = export_lerobot.subtask_rows(item, known)
    assert known == {"(none)": 0, "a": 1, "b": 2}
    assert rows[:24].tolist() == [0] * 8 + [1] * 8 + [2] * 8 and not rows[24:].any()


def test_films_lie_one_after_another_in_one_file(items, exported):
    episodes = pq.read_table(exported / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    for view in ("ego", "wrist"):
        key = f"videos/observation.images.{view}"
        for item, row in zip(items, episodes, strict=True):
            film = VideoFilm(
                exported / f"{key}/chunk-000/file-000.mp4",
                first=round(row[f"{key}/from_timestamp"] * 40),
                count=item.episode.steps + 1,
            )
            error = np.abs(film[:].mean((1, 2, 3)) - item.episode.frames[view][:].mean((1, 2, 3)))
            assert error.max() < 1.4  # half the step of one frame
            assert film.shape[1:] == (64, 66, 3)


def test_statistics_of_the_whole_are_those_of_all_rows(items, exported):
    stats = json.loads((exported / "meta/stats.json").read_text())
    rows = np.array(
        pq.read_table(exported / "data/chunk-000/file-000.parquet").to_pydict()["action"]
    )
    for name, want in (
        ("mean", rows.mean(0)),
        ("std", rows.std(0)),
        ("min", rows.min(0)),
        ("max", rows.max(0)),
    ):
        np.testing.assert_allclose(stats["action"][name], want, atol=1e-6)
    assert stats["action"]["count"] == [len(rows)]
    pixels = stats["observation.images.ego"]
    assert (
        np.shape(pixels["mean"]) == (3, 1, 1)
        and 0 < pixels["min"][0][0][0] < pixels["max"][0][0][0] < 1
    )


def test_a_datasets_own_actions_go_back_as_they_came(items, tmp_path):
    rng = np.random.default_rng(0)
    items = [
        dataclasses.replace(
            i,
            episode=dataclasses.replace(
                i.episode,
                native=NativeActions(
                    values=rng.normal(size=(i.episode.steps, 3)).astype(np.float32),
                    names=("a", "b", "c"),
                ),
            ),
        )
        for i in items
    ]
    info = export_lerobot.export_lerobot(tmp_path / "set", items)
    assert info["features"]["action"]["names"] == ["a", "b", "c"]
    rows = np.array(
        pq.read_table(tmp_path / "set/data/chunk-000/file-000.parquet").to_pydict()["action"],
        np.float32,
    )
    np.testing.assert_array_equal(rows[: items[0].episode.steps], items[0].episode.native.values)


def test_nothing_is_left_of_an_export_that_fails(items, tmp_path):
    other = dataclasses.replace(items[1].episode, control_hz=10.0)
    with pytest.raises(StoreError, match="rate is 10.0 but the first episode has 40.0"):
        export_lerobot.export_lerobot(
            tmp_path / "set", [items[0], dataclasses.replace(items[1], episode=other)]
        )
    with pytest.raises(StoreError, match="no episode to export"):
        export_lerobot.export_lerobot(tmp_path / "set", [])
    assert not list(tmp_path.iterdir())


def test_films_shorter_than_the_encoders_lookahead_are_kept(items, tmp_path):
    """The encoder has written nothing yet, not even the file, when the second film comes."""
    short = [
        dataclasses.replace(i, episode=retake(i.episode, np.arange(4)), spans=[], captions=[])
        for i in items
    ]
    export_lerobot.export_lerobot(tmp_path / "set", short)
    path = next((tmp_path / "set").glob("videos/*/chunk-000/file-000.mp4"))
    film = VideoFilm(path)
    assert len(film) == sum(i.episode.steps + 1 for i in short) == 12
    for i, item in enumerate(short):
        want = next(iter(item.episode.frames.values()))
        seen = film[4 * i : 4 * i + 4].astype(int).mean((1, 2, 3))
        assert np.abs(seen - want.astype(int).mean((1, 2, 3))).max() < 6
