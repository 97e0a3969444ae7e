"""Workers that are killed, stopped or fail: one line each, soon, and nothing is left behind.

Every scenario runs in a process group of its own and for a bounded time: what
hangs fails, with the stacks of all its threads.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

HERE = pathlib.Path(__file__).parent
ROUNDS = int(os.environ.get("WALLWM_ROUNDS", "2"))
"""Loaders that are lost at a time, twice over: 5 is ten rounds, half a minute on a busy machine."""

LIMIT_S = 240
"""Seconds of a scenario. They take 5 to 20, many times that where 30 processes share two cores."""

pytestmark = pytest.mark.skipif(
    not pathlib.Path("/proc/self/stat").exists(), reason="looks into /proc"
)


def play(
    folder, name: str, *arguments, limit_s=LIMIT_S, grace_s=20, script=HERE / "worker_scenarios.py"
) -> tuple[dict, str]:
    """Findings of a scenario and what it wrote to stderr; fails when it fails or hangs.

    Its output goes to files: a worker that outlives it would hold a pipe open.
    """
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1]), str(HERE)])
    out, err = folder / f"{name}.out", folder / f"{name}.err"
    with open(out, "w") as stdout, open(err, "w") as stderr:
        run = subprocess.Popen(
            [sys.executable, str(script), name, str(limit_s), *map(str, arguments)],
            env=environment, stdout=stdout, stderr=stderr, start_new_session=True,
        )  # fmt: skip
        try:
            code = run.wait(limit_s + grace_s)
        except subprocess.TimeoutExpired:
            code = "none: it hung"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)  # its workers too, however it went
            run.wait()
    told = err.read_text()
    if code != 0:
        pytest.fail(f"scenario {name}, exit code {code}:\n{told[-20_000:]}", pytrace=False)
    return json.loads(out.read_text()), told


def check_line(one: dict, within_s: float) -> None:
    assert one["line"] and "\n" not in one["line"]
    assert one["seconds"] < within_s


def test_lost_workers_are_noticed_and_leave_nothing(latents, tmp_path):
    found, told = play(tmp_path, "rounds", latents.folder, ROUNDS)
    for wave in found.values():
        assert wave["workers"] == len(wave["rounds"]) == ROUNDS
        # What was never in shared memory is not left there, whoever is killed and when.
        assert wave["held"] == []
        assert wave["left"] == 0
        for one in wave["rounds"]:
            check_line(one, within_s=10)
            assert "start the run again" in one["line"]
    assert all("exit code -9" in one["line"] for one in found["SIGKILL"]["rounds"])
    for one in found["SIGSTOP"]["rounds"]:
        assert re.search(r"no batch .* for 3 s: process \d+ is stopped", one["line"])
    assert "leaked" not in told


def test_a_worker_lost_in_the_middle_of_a_message_keeps_nobody_waiting(tmp_path):
    found, told = play(tmp_path, "half_messages")
    assert found.pop("left") == 1  # the one that is left to Python's end, stopped as it is
    assert len(found) == 5
    for one in found.values():
        assert one["seconds"] < 10
    assert "exit code -9" in found["SIGKILL next"]["line"]
    assert "is stopped" in found["SIGSTOP next"]["line"]
    assert "leaked" not in told


def test_a_worker_lost_before_it_read_its_share_keeps_nobody_waiting(tmp_path):
    found, _ = play(tmp_path, "before_it_read_its_share")
    assert found["left"] == 0
    check_line(found["SIGKILL"], within_s=10)
    check_line(found["SIGSTOP"], within_s=10)
    assert "exit code -9" in found["SIGKILL"]["line"]
    assert "is stopped" in found["SIGSTOP"]["line"]


def test_what_a_worker_cannot_tell_is_told_all_the_same(tmp_path):
    found, _ = play(tmp_path, "failures")
    assert found.pop("left") == 0
    for one in found.values():
        check_line(one, within_s=90)  # most of it is the start of the worker
    assert "the loader failed (TypeError: cannot pickle" in found["source"]["line"]
    assert "the loader failed (Unsendable: the disk)" in found["error"]["line"]
    assert "exit code 3" in found["exit"]["line"]
    assert found["early"]["line"] == "element 2 is bad"


@pytest.mark.parametrize("kind", ["a sample", "a record"])
def test_a_failing_worker_names_the_event(latents, tmp_path, kind):
    if kind == "a sample":
        arguments = latents.folder, "human"
        words, error = r"event \d+ has no caption track 'human'", "SampleError"
    else:
        folder = shutil.copytree(latents.folder, tmp_path / "cache")
        arguments = folder, "action", "00001.array_record"
        words, error = (
            r"00001.array_record, wanted for record \d+, is truncated",
            "LatentCacheError",
        )
    found, _ = play(tmp_path, "one_event", *arguments)
    assert found["kind"] == error and re.search(words, found["line"])
    check_line(found, within_s=90)  # most of it is the start of the worker
    assert found["left"] == 0


HANGING = """
import faulthandler, os, signal, subprocess, sys, threading
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
os.kill(child.pid, signal.SIGSTOP)
print(child.pid, flush=True)
if sys.argv[1] == "stopped":
    os.kill(os.getpid(), signal.SIGSTOP)
faulthandler.dump_traceback_later(float(sys.argv[2]), exit=True)
def waits_for_ever():
    threading.Event().wait()
waits_for_ever()
"""


@pytest.mark.parametrize("how, told", [("waiting", "in waits_for_ever"), ("stopped", "it hung")])
def test_a_scenario_that_hangs_fails_with_its_stacks(tmp_path, how, told):
    script = tmp_path / "hanging.py"
    script.write_text(HANGING)
    with pytest.raises(pytest.fail.Exception, match=told):
        play(tmp_path, how, limit_s=1, grace_s=2, script=script)
    pid = (tmp_path / f"{how}.out").read_text().strip()
    deadline = time.monotonic() + 5
    while (state := state_of(pid)) not in "ZX" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert state in "ZX"  # its stopped child too


def state_of(pid: str) -> str:
    """The letter by which the kernel tells what a process does; X when it is gone."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"
