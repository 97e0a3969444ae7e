"""The import contract: any known folder in, a store and its manifest out, or one line."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments import import_data
from wallwm_jax.episodes.source import FORMATS, open_source
from wallwm_jax.events.store import open_store, read_manifest

ROOT = Path(__file__).resolve().parents[2]
PLAIN = ["--no-sync", "--no-clean", "--image-size", "16"]
"""Fixtures are too short to synchronise."""

KEYS = {
    "format",
    "episodes",
    "frames",
    "events",
    "views",
    "skipped",
    "warnings",
    "event_length",
    "shards",
}


def run(*words):
    import_data.main([str(word) for word in words])


def _bytes(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_becomes_a_store(name, tmp_path, capsys):
    module = importlib.import_module(f"fixture_{name}")
    module.write(tmp_path / "set" / "inner")
    run("--source", tmp_path / "set", "--out", tmp_path / "out", *PLAIN)
    captured = capsys.readouterr()
    assert captured.err == "" and "episodes" in captured.out
    page = json.loads((tmp_path / "out/manifest.json").read_text())
    assert page.keys() >= KEYS and page["format"].startswith(name)
    source = open_source(tmp_path / "set")
    assert page["episodes"] + len(page["skipped"]) == len(source.keys) + len(source.skipped)
    assert sum(shard["records"] for shard in page["shards"]) == page["events"] > 0
    for split in page["splits"]:
        store = open_store(tmp_path / "out", split)
        for i in range(len(store)):
            event = store[i]
            assert list(event.frames) == page["views"] and all(event.captions.values())
            assert np.isfinite(event.actions).all()
    listed = json.loads((tmp_path / "out/sources.json").read_text())
    assert listed and all(len(one["sha256"]) == 64 for one in listed.values())
    assert str(tmp_path) not in (tmp_path / "out/manifest.json").read_text()


def test_the_bytes_depend_on_the_data_alone(tmp_path):
    """Another place, other processes, another runner: the same store."""
    import fixture_rlds

    fixture_rlds.write(tmp_path / "a/set")
    shutil.copytree(tmp_path / "a/set", tmp_path / "b/set")
    size = ["--episodes-per-shard", "2", *PLAIN]
    run("--source", tmp_path / "a/set", "--out", tmp_path / "one", *size)
    run("--source", tmp_path / "b/set", "--out", tmp_path / "two", "--processes", 2, *size)
    run("--source", tmp_path / "a/set", "--out", tmp_path / "three", "--runner", "beam", *size)
    one = _bytes(tmp_path / "one")
    assert one == _bytes(tmp_path / "two") == _bytes(tmp_path / "three")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--source", "{tmp}/none"], "none is not a folder"),
        (["--source", "{tmp}/empty"], "holds no dataset in a known format"),
        (["--source", "{tmp}/set", "--format", "fits"], "format 'fits' is unknown"),
        (["--source", "{tmp}/set", "--image-size", "2"], "--image-size 2 is too small"),
        (["--source", "{tmp}/set", "--option", "x"], "is not KEY=VALUE"),
        (["--source", "{tmp}/set", "--views", "nowhere"], "missing camera stream nowhere"),
        (["--source", "{tmp}/set", "--segmentation", "given"], "no captions below the task"),
        (["--source", "{tmp}/set", "--out", "{tmp}/empty"], "already exists"),
    ],
)
def test_what_goes_wrong_is_one_line_and_leaves_nothing(words, line, tmp_path, capsys):
    import fixture_rlds

    fixture_rlds.write(tmp_path / "set")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/notes.txt").write_text("nothing")
    words = [word.format(tmp=tmp_path) for word in words]
    words += [] if "--out" in words else ["--out", str(tmp_path / "out")]
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(SystemExit) as ended:
        run(*words, "--no-sync", "--no-clean")
    error = capsys.readouterr().err
    assert ended.value.code == 1 and error.count("\n") == 1 and line in error
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_finished_import_is_reused_and_other_settings_are_refused(tmp_path, capsys):
    import fixture_rlds

    fixture_rlds.write(tmp_path / "set")
    words = ["--source", tmp_path / "set", "--out", tmp_path / "out", *PLAIN]
    run(*words)
    before = _bytes(tmp_path / "out")
    run(*words)
    assert _bytes(tmp_path / "out") == before
    with pytest.raises(SystemExit):
        run(*words, "--max-length", 3)
    assert "made with other settings" in capsys.readouterr().err


def test_marks_of_a_person_become_the_human_track(tmp_path):
    import fixture_rlds

    fixture_rlds.write(tmp_path / "set")
    source = open_source(tmp_path / "set")
    steps = source.read(source.keys[0]).steps
    marks = [
        {
            "episode": source.read(source.keys[0]).episode_id,
            "start": 0,
            "end": steps,
            "text": "mine",
        }
    ]
    (tmp_path / "marks.json").write_text(json.dumps(marks))
    run(
        "--source",
        tmp_path / "set",
        "--out",
        tmp_path / "out",
        "--human",
        tmp_path / "marks.json",
        *PLAIN,
    )
    store = open_store(tmp_path / "out", "train")
    said = {store[i].episode_id: store[i].captions.get("human") for i in range(len(store))}
    assert said.pop(marks[0]["episode"]) == "mine" and set(said.values()) == {None}


def test_an_import_killed_again_and_again_ends_in_the_same_bytes(tmp_path):
    """U7: SIGKILL at random instants, then a run to the end: as if nothing had happened."""
    import fixture_rlds

    fixture_rlds.write(tmp_path / "set", counts={"train": 12})
    words = ["--source", str(tmp_path / "set"), "--episodes-per-shard", "1", *PLAIN]
    run(*words, "--out", tmp_path / "clean")
    command = [
        sys.executable,
        "-m",
        "experiments.prepare_data",
        *words,
        "--out",
        str(tmp_path / "out"),
    ]
    rng = np.random.default_rng(0)
    began, kills = time.monotonic(), 0
    subprocess.run(
        [*command[:-1], str(tmp_path / "timed")], cwd=ROOT, check=True, capture_output=True
    )
    whole = time.monotonic() - began
    for _ in range(int(os.environ.get("WALLWM_KILLS", 2))):
        process = subprocess.Popen(command, cwd=ROOT, stdout=-3, stderr=-3)
        try:
            process.wait(timeout=whole * rng.uniform(0.4, 1.0))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    run(*words, "--out", tmp_path / "out")
    assert _bytes(tmp_path / "out") == _bytes(tmp_path / "clean") and kills


def test_real_folders_are_counted_exactly(real_data, tmp_path):
    """What their README says of them, through the whole pipeline (sync and clean as well)."""
    counts = {}
    for name in ("bridge_rlds", "g1_bottle_lerobot_v21", "gr1_sim_lerobot_v20", "captaincook4d"):
        run("--source", real_data(name), "--out", tmp_path / name, "--image-size", 32)
        page = read_manifest(tmp_path / name)
        counts[name] = (page.format, page.episodes, len(page.skipped))
        assert page.warnings
    assert counts == {
        "bridge_rlds": ("rlds", 25, 25),
        "g1_bottle_lerobot_v21": ("lerobot_v2.1", 6, 94),
        "gr1_sim_lerobot_v20": ("lerobot_v2.0", 5, 0),
        "captaincook4d": ("captaincook4d", 308, 0),
    }
    doubles = [s["reason"] for s in read_manifest(tmp_path / "bridge_rlds").skipped]
    assert all("duplicate of" in reason for reason in doubles)
    assert read_manifest(tmp_path / "g1_bottle_lerobot_v21").frames == 1632
    assert read_manifest(tmp_path / "captaincook4d").events == 4353
