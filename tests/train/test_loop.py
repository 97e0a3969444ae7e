"""Runs are reproducible, resumable, and move only what their stage trains."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from mini_run import mini_run
from ml_collections import ConfigDict

from configs.metaworld import get_config
from wallwm_jax.input.loader import Loader
from wallwm_jax.train.build import checkpoint_folder
from wallwm_jax.train.loop import train
from wallwm_jax.train.run import build_run
from wallwm_jax.train.saved import latest_step, read_meta, read_params
from wallwm_jax.train.seal import folder_of

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


def start(folder: Path, steps: int) -> subprocess.Popen:
    """The toy run as a process on one pinned core: thread counts change the bits."""
    command = ["taskset", "-c", "0", sys.executable, str(Path(__file__).with_name("toy_run.py"))]
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [*command, str(folder), "video", str(steps)],
        env=os.environ | {"PYTHONPATH": f"{root}:{root / 'tests' / 'events'}"},
        cwd=root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def kill_while_training(process: subprocess.Popen, log: Path, delay: float) -> int:
    """SIGKILL `delay` seconds after the process has logged a new step; steps logged by then."""

    def logged() -> int:
        return log.read_text().count("\n") if log.is_file() else 0

    # A resumed run first drops the lines it will write again, then adds to them.
    stamp, low = log.stat().st_mtime_ns if log.is_file() else 0, logged()
    while not log.is_file() or log.stat().st_mtime_ns == stamp or logged() <= low:
        low = min(low, logged())
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.005)
    time.sleep(delay)
    assert process.poll() is None, "the run ended before it could be killed; give it more steps"
    process.send_signal(signal.SIGKILL)
    process.wait()
    return logged()


def test_killed_at_random_instants_the_losses_are_equal(fresh, tmp_path):
    """SIGKILL while training or saving, then the same command again, until it is done."""
    steps = 100 + 60 * KILLS
    whole = fresh.copy_and_resolve_references()
    whole.workdir = str(tmp_path / "whole")
    shutil.copytree(fresh.workdir, whole.workdir, ignore=shutil.ignore_patterns("whole"))
    assert start(Path(whole.workdir), steps).wait() == 0
    rng, log = random.Random(0), Path(fresh.workdir) / "video" / "metrics.jsonl"
    reached = [
        kill_while_training(start(Path(fresh.workdir), steps), log, rng.uniform(0.0, 0.7))
        for _ in range(KILLS)
    ]
    print("steps logged at each kill:", reached)
    assert start(Path(fresh.workdir), steps).wait() == 0
    assert len(hex_losses(fresh, "video")) == steps
    assert hex_losses(fresh, "video") == hex_losses(whole, "video")


def test_checkpoints_may_lie_elsewhere(tmp_path):
    """The logs stay on the disk; what continues is found where it was put."""
    elsewhere = folder_of(tmp_path / "bucket" / "video")
    train(mini_run(tmp_path / "run", checkpoints=elsewhere))
    assert latest_step(elsewhere) == 8 and not (tmp_path / "run" / "checkpoints").exists()
    assert train(mini_run(tmp_path / "run", checkpoints=elsewhere, steps=10))["resumed_from"] == 8
    config = get_config()
    assert str(checkpoint_folder(config, "video")).endswith("runs/metaworld/video/checkpoints")
    config.checkpoints = "gs://bucket/runs"
    assert str(checkpoint_folder(config, "video")) == "gs://bucket/runs/video"
