"""The chaos driver sees what it should see, and the command that names damage names it.

Kills themselves cost minutes: `python -m experiments.chaos --smoke` runs them.
"""

import importlib
import json
import os
import random
import shutil
from pathlib import Path

import pytest
from toy_state import write_steps

from experiments import (
    chaos,
    chaos_compare,
    chaos_fellows,
    chaos_rounds,
    chaos_toy,
    verify_checkpoint,
)
from wallwm_jax.events.store import open_store


class StillToy:
    """Folders of a run that was trained once and copied by hand; processes train nothing."""

    steps, every = 4, 2

    def __init__(self, root: Path):
        self.root, self.count = root, 0
        self.whole = self.fresh()
        write_steps(chaos_toy.checkpoints(self.whole), 2, 4)
        write_log(self.whole, ["0x1p0", "0x1p-1", "0x1p-2", "0x1p-3"])
        write_batches(self.whole, "abcd")

    def reference(self, changes=None):
        return self.whole

    def fresh(self, name="run"):
        self.count += 1
        folder = self.root / f"{name}-{self.count}"
        (folder / chaos_toy.STAGE).mkdir(parents=True)
        return folder

    def copied(self):
        return Path(shutil.copytree(self.whole, self.root / "copy"))


def write_log(folder, losses):
    lines = [json.dumps({"step": i, "loss_hex": loss}) + "\n" for i, loss in enumerate(losses)]
    (folder / chaos_toy.STAGE / "metrics.jsonl").write_text("".join(lines))


def write_batches(folder, rows, process=0):
    """One sequence a batch, named by a letter."""
    pages = [{"batch": i, "rows": [row], "events": [i]} for i, row in enumerate(rows)]
    text = "".join(json.dumps(page) + "\n" for page in pages)
    (folder / f"batches-{process}.jsonl").write_text(text)


@pytest.fixture
def toy(tmp_path):
    return StillToy(tmp_path)


def test_an_equal_run_passes_and_each_difference_is_told(toy):
    folder = toy.copied()
    assert chaos_compare.compared(toy, folder, toy.whole, 0) == []
    assert "status 3" in chaos_compare.compared(toy, toy.whole, toy.whole, 3)[0]
    write_log(folder, ["0x1p0", "0x1.8p-1", "0x1p-2"])
    lines = chaos_compare.compared(toy, folder, toy.whole, 0)
    assert "loss of step 1 is 0x1.8p-1 and not 0x1p-1" in lines[0]
    assert "logged 3 of 4 steps" in lines[1] and len(lines) == 2
    shutil.copytree(toy.whole, folder, dirs_exist_ok=True)
    shutil.rmtree(chaos_toy.checkpoints(folder) / "4")
    (chaos_toy.checkpoints(folder) / "4.orbax-checkpoint-tmp").mkdir()
    lines = chaos_compare.compared(toy, folder, toy.whole, 0)
    assert "arrays or data position" in lines[0] and "unfinished" in lines[1]


def test_a_batch_that_is_another_or_was_not_read_is_told(toy):
    folder = toy.copied()
    write_batches(folder, "abXd")
    (line,) = chaos_compare.compared(toy, folder, toy.whole, 0)
    assert "batch 2 of process 0 has other sequences" in line
    write_batches(folder, "abc")
    (line,) = chaos_compare.compared(toy, folder, toy.whole, 0)
    assert "read 3 of the 4 batches" in line
    # Read again after a restart, as it was; a line that a kill has cut does not count.
    write_batches(folder, "abcd")
    with open(folder / "batches-0.jsonl", "a") as file:
        file.write(json.dumps({"batch": 3, "rows": ["d"], "events": [3]}) + '\n{"batch": 3, "ro')
    assert chaos_compare.compared(toy, folder, toy.whole, 0) == []


def test_sequences_are_in_the_order_of_who_read_them(toy):
    folder = toy.copied()
    for process, rows in enumerate(("ab", "cd", "ef")):
        write_batches(folder, rows, process)
    assert chaos_fellows._sequences(folder) == {0: ["a", "c", "e"], 1: ["b", "d", "f"]}


class Still:
    """A process that ends as it is told, or stays."""

    def __init__(self, exitcode):
        self.exitcode = exitcode

    def is_alive(self):
        return self.exitcode is None

    def join(self, timeout=None):
        """At once."""

    def kill(self):
        self.exitcode = -9 if self.exitcode is None else self.exitcode


@pytest.mark.parametrize(
    ("statuses", "wrong"),
    [((1, -9, 75, -6), None), ((1, -9, None, 1), "None"), ((1, 0, 1, 1), "0")],
)
def test_a_fellow_that_lives_on_or_ends_with_0_is_told(toy, monkeypatch, statuses, wrong):
    processes = [Still(status) for status in statuses]
    for process in processes:
        process.pid = os.getpid()
    monkeypatch.setattr(chaos_fellows.os, "kill", lambda pid, number: None)
    (toy.whole / "child.log").write_text("")
    life = chaos_compare.Life(toy.whole, chaos_toy.Fellows(processes))
    _, bad = chaos_fellows._round(life, "coordinator killed", random.Random(0))
    assert bool(bad) == bool(wrong) and all(wrong in line for line in bad)
    assert not life.process.is_alive()


def test_damage_of_each_kind_is_noticed_and_a_checker_that_sleeps_is_caught(toy, monkeypatch):
    monkeypatch.setattr(chaos_rounds, "_continued", lambda *a: [])
    outcome = chaos_rounds.damaged(toy, 60, random.Random(0))
    assert outcome.bad == [] and outcome.rounds > 60 + 15
    monkeypatch.setattr(chaos_rounds, "damage", lambda step: [])
    assert len(chaos_rounds.damaged(toy, 60, random.Random(0)).bad) == outcome.rounds - 4


def test_the_toy_has_data_that_can_be_packed(tmp_path):
    config = chaos_toy.get_config()
    config.workdir = str(tmp_path)
    chaos_toy.make_data(config)
    store = open_store(tmp_path / "dataset", "train")
    assert len(store) == 36 and len(set(store.index.length.tolist())) > 3
    stamp = (tmp_path / "dataset" / "manifest.json").stat().st_mtime_ns
    chaos_toy.make_data(config)
    assert (tmp_path / "dataset" / "manifest.json").stat().st_mtime_ns == stamp


def test_every_row_has_its_function_and_an_unknown_one_is_refused(capsys):
    for row in chaos.ROWS.values():
        module = importlib.import_module(f"experiments.{row.module}")
        assert getattr(module, row.function).__doc__
        assert 0 <= row.smoke <= row.full and row.full > 0
    with pytest.raises(SystemExit):
        chaos.main(["--rounds", "R99"])
    assert "'R99' is unknown" in capsys.readouterr().err


def test_the_command_names_each_damaged_file(tmp_path, capsys):
    folder = write_steps(tmp_path / "checkpoints", 2, 4)
    assert verify_checkpoint.main([str(folder)]) == 0
    assert "step 4: whole" in capsys.readouterr().out
    (folder / "4" / "meta" / "metadata").write_text("{}")
    (folder / "4" / "state" / "manifest.ocdbt").unlink()
    assert verify_checkpoint.main([str(folder)]) == 1
    out = capsys.readouterr().out
    assert "step 2: whole" in out and "step 4: 2 files are damaged" in out
    assert f"{folder / '4'}: meta/metadata has 2 bytes" in out
    assert f"{folder / '4'}: state/manifest.ocdbt is missing" in out
    with pytest.raises(SystemExit):
        verify_checkpoint.main([str(tmp_path / "nothing")])
    assert "no checkpoint in" in capsys.readouterr().err
