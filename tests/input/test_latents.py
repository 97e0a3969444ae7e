"""The latent cache: true to its events, atomic, and never silently wrong."""

import copy
import dataclasses
import json

import numpy as np
import pytest
from synthetic_events import VIEWS, build, encode, make_event

from wallwm_jax.input.latents import LatentCacheError, open_latents


@pytest.fixture()
def small(tmp_path):
    """A folder with a cache of six events in two shards."""
    build([make_event(i) for i in range(6)], tmp_path / "cache", events_per_shard=4)
    return tmp_path / "cache"


def test_records_are_the_events(events, latents):
    assert len(latents) == len(events)
    for i in (0, 24, 25, 59):  # both sides of a shard's end
        record, event = latents[i], events[i]
        clips = np.stack([event.frames[v] for v in VIEWS]).astype(np.float32) / 127.5 - 1
        np.testing.assert_allclose(record.latents, encode(clips), atol=2e-3)
        assert latents.frames[i] == record.latents.shape[1] == 1 + -(-event.length // 8)
        assert latents.steps[i] == event.length
        np.testing.assert_array_equal(record.actions, event.actions)
        np.testing.assert_array_equal(record.state, event.state)
        assert record.captions == event.captions
        # The camera of latent frame j is that of sampled frame 4j (see make_event).
        np.testing.assert_array_equal(
            record.extrinsics[:, 0, 0, 3], 4 * np.arange(latents.frames[i])
        )
        np.testing.assert_array_equal(record.intrinsics[0, :, 0, 0], [20, 21])
    assert latents.manifest.captions["task"] == ["open the drawer"]
    with pytest.raises(IndexError):
        latents[60]


def test_the_size_of_codec_calls_changes_nothing(events, latents, tmp_path):
    seen = set()

    def spy(video):
        seen.add(video.shape[:2])
        return encode(video)

    other = build(events, tmp_path / "other", encode=spy, events_per_call=3)
    assert {clips for clips, _ in seen} == {6}  # one compilation per clip length
    assert other.manifest.frames == latents.manifest.frames
    for i in range(len(events)):
        np.testing.assert_array_equal(other[i].latents, latents[i].latents)


def test_black_bars_are_marked(tmp_path):
    event = make_event(0)
    event.frames["wrist"][:, :8] = 0
    store = build([event], tmp_path / "letterboxed", border_threshold=2)
    np.testing.assert_array_equal(store[0].visible, [[[1, 1], [1, 1]], [[0, 0], [1, 1]]])
    with pytest.raises(LatentCacheError, match="has border_threshold 2 but this run has None"):
        build([event], tmp_path / "letterboxed")
    assert build([event], tmp_path / "night")[0].visible.all()  # not a border unless said so


def test_a_fitting_cache_is_reused_and_another_refused(small):
    forbidden = lambda video: pytest.fail("encoded again")  # noqa: E731
    assert len(build([], small, encode=forbidden)) == 6
    for other in ({"codec_hash": "new"}, {"source_hash": "new"}, {"views": VIEWS[::-1]}):
        with pytest.raises(LatentCacheError, match=f"has {next(iter(other))} .* but this run has"):
            build([], small, encode=forbidden, **other)
    one = build([make_event(9)], small, codec_hash="new", replace=True)
    assert len(one) == 1 and one.manifest.codec_hash == "new"


def test_a_failed_build_leaves_nothing(tmp_path):
    def fails(video):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        build([make_event(0)], tmp_path / "cache", encode=fails)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "cache.building").mkdir()  # what a killed build leaves
    (tmp_path / "cache.building" / "00000.array_record").write_bytes(b"half")
    assert len(build([make_event(0)], tmp_path / "cache")) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["cache"]


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def _edit(path):
    page = json.loads(path.read_text())
    page["version"] = 99
    path.write_text(json.dumps(page))


def _cut(path):
    path.write_bytes(path.read_bytes()[:1000])


DAMAGE = {
    "flipped bit": ("00001.array_record", _flip, "is damaged"),
    "truncated": ("00000.array_record", _cut, "is damaged"),
    "empty": ("00000.array_record", lambda p: p.write_bytes(b""), "is damaged"),
    "missing": ("00001.array_record", lambda p: p.unlink(), "is missing"),
    "manifest missing": ("manifest.json", lambda p: p.unlink(), "holds no latent cache"),
    "manifest cut": ("manifest.json", lambda p: p.write_text("{"), "cannot be used"),
    "manifest of another version": ("manifest.json", _edit, "version 99"),
}


@pytest.mark.parametrize("case", DAMAGE, ids=lambda c: c.replace(" ", "-"))
def test_damage_is_one_clear_line(small, case):
    name, damage, words = DAMAGE[case]
    damage(small / name)
    with pytest.raises(LatentCacheError, match=words) as error:
        open_latents(small)
    assert "\n" not in str(error.value) and str(small) in str(error.value)


@pytest.mark.parametrize("case", ["flipped bit", "truncated", "missing"])
def test_damage_after_opening_names_shard_and_record(small, case):
    store = open_latents(small)
    name, damage, _ = DAMAGE[case]
    damage(small / name)
    with pytest.raises(LatentCacheError, match=name) as error:
        for i in range(len(store)):
            store[i]
    assert "\n" not in str(error.value)


def test_bad_events_and_codecs_are_refused(tmp_path):
    event, folder = make_event(0), tmp_path / "cache"
    words = r"fake/0000, event 0 has views \['ego'\] but not \['wrist'\]"
    with pytest.raises(ValueError, match=words):
        build([dataclasses.replace(event, frames={"ego": event.frames["ego"]})], folder)
    with pytest.raises(ValueError, match="do not fit float16"):
        build([event], folder, encode=lambda v: encode(v) * 1e6)
    with pytest.raises(ValueError, match="needs 1\\+N of 1\\+4N"):
        build([event], folder, encode=lambda v: encode(v)[:, :1])
    with pytest.raises(ValueError, match="no events to encode"):
        build([], folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(LatentCacheError, match="cannot write"):
        build([event], tmp_path / "file" / "cache")


def test_copies_open_their_own_readers(latents):
    latents[0]
    twin = copy.deepcopy(latents)  # goes through __getstate__, as for a loader process
    np.testing.assert_array_equal(twin[30].latents, latents[30].latents)
