"""Runs are reproducible, resumable, and move only what their stage trains."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from wallwm_jax.input.loader import Loader
from wallwm_jax.train.checkpoint import latest_step, read_meta, read_params
from wallwm_jax.train.loop import train
from wallwm_jax.train.run import build_run

KILLS = int(os.environ.get("WALLWM_KILLS", "1"))
"""Random kills of the kill test; ten were run by hand (see README)."""


def lines(config: ConfigDict, stage: str) -> list[dict]:
    """The run's log."""
    path = Path(config.workdir) / stage / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def hex_losses(config: ConfigDict, stage: str) -> list[tuple[int, str]]:
    return [(line["step"], line["loss_hex"]) for line in lines(config, stage)]


def checkpoints(config: ConfigDict, stage: str) -> Path:
    return Path(config.workdir) / stage / "checkpoints"


def test_every_step_is_logged_once_and_the_loss_falls(trained):
    for stage in ("video", "action"):
        log = lines(trained, stage)
        assert [line["step"] for line in log] == list(range(12))
        losses = [line["loss"] for line in log]
        assert np.mean(losses[-3:]) < np.mean(losses[:3])
        assert float.fromhex(log[5]["loss_hex"]) == log[5]["loss"]


def test_same_seed_same_losses_and_another_seed_others(trained, fresh):
    fresh.stage = "video"
    train(build_run(fresh))
    assert hex_losses(fresh, "video") == hex_losses(trained, "video")


def test_interrupted_and_resumed_equals_uninterrupted(trained, fresh, monkeypatch):
    """An exception between checkpoints: the steps after the last one are taken again."""
    fresh.stage = "video"
    give = Loader.__next__
    calls = iter(range(100))

    def fails_at_batch_six(self):
        if next(calls) == 6:
            raise RuntimeError("power cut")
        return give(self)

    monkeypatch.setattr(Loader, "__next__", fails_at_batch_six)
    with pytest.raises(RuntimeError, match="power cut"):
        train(build_run(fresh))
    monkeypatch.undo()
    assert latest_step(checkpoints(fresh, "video")) == 4
    result = train(build_run(fresh))
    assert result["resumed_from"] == 4
    assert hex_losses(fresh, "video") == hex_losses(trained, "video")
    ours, theirs = (read_params(checkpoints(c, "video"), 12) for c in (fresh, trained))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_finished_run_is_left_as_it_is(trained):
    trained.stage = "video"
    before = hex_losses(trained, "video")
    assert train(build_run(trained))["resumed_from"] == 12
    assert hex_losses(trained, "video") == before


def test_the_action_stage_moves_nothing_of_the_video(trained):
    video = read_params(checkpoints(trained, "video"), 12)
    action = read_params(checkpoints(trained, "action"), 12)
    for part in ("video", "text", "codec"):
        jax.tree.map(np.testing.assert_array_equal, video[part], action[part])
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), video["action"], action["action"])
    assert max(jax.tree.leaves(moved)) > 1e-3


def test_a_checkpoint_is_complete_by_itself(trained):
    meta = read_meta(checkpoints(trained, "action"), 12)
    assert {"statistics", "tokeniser", "views", "codec", "image_size"} <= set(meta["input"])
    assert meta["input"]["views"] == ["ego", "wrist"]
    assert set(read_params(checkpoints(trained, "action"), 12)) == {
        "text",
        "video",
        "action",
        "codec",
    }


def test_the_scratch_recipe_trains_both_towers(fresh):
    """U-Scratch: fixed chunks, one noise level, everything moves."""
    from toy_run import make_data

    make_data(fresh, "fixed")
    fresh.stage = "scratch"
    train(build_run(fresh))
    log = lines(fresh, "scratch")
    assert len(log) == 12 and {"loss_video", "loss_action"} <= log[0].keys()
    assert log[0]["loss"] == pytest.approx(log[0]["loss_video"] + log[0]["loss_action"], rel=1e-5)


def test_killed_at_random_instants_the_losses_are_equal(fresh, tmp_path):
    """SIGKILL on one pinned core, then the same command again, until it is done."""
    command = ["taskset", "-c", "0", sys.executable, str(Path(__file__).with_name("toy_run.py"))]
    root = Path(__file__).parents[2]
    env = os.environ | {"PYTHONPATH": f"{root}:{root / 'tests' / 'events'}"}

    def start(folder: Path) -> subprocess.Popen:
        return subprocess.Popen(
            [*command, str(folder), "video"],
            env=env,
            cwd=root,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    import shutil

    whole = tmp_path / "whole"
    shutil.copytree(fresh.workdir, whole, ignore=shutil.ignore_patterns("whole"))
    begun = time.monotonic()
    assert start(whole).wait() == 0
    seconds = time.monotonic() - begun
    rng, kills = random.Random(0), 0
    while True:
        process = start(Path(fresh.workdir))
        try:
            # Late enough to have trained a little, at any point of a save.
            process.wait(rng.uniform(0.4, 0.95) * seconds if kills < KILLS else 600)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            continue
        assert process.returncode == 0
        break
    other = fresh.copy_and_resolve_references()
    other.workdir = str(whole)
    assert hex_losses(fresh, "video") == hex_losses(other, "video")
