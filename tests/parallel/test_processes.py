"""Who is who among several processes, and what becomes of them when one fails."""

import signal
import subprocess
import sys
import time

import jax
import pytest

from wallwm_jax.parallel import processes
from wallwm_jax.parallel.mesh import make_mesh
from wallwm_jax.parallel.processes import (
    ProcessError,
    Processes,
    Vote,
    await_all,
    launch,
    this_command,
)


def of(environment: dict[str, str] | None = None, **given: str) -> Processes:
    return Processes.of(given, environment or {})


def test_flags_win_over_the_environment():
    around = {
        "WALLWM_PROCESSES": "4",
        "WALLWM_PROCESS_ID": "2",
        "WALLWM_COORDINATOR": "host:1",
    }
    assert of(around) == Processes(count=4, index=2, coordinator="host:1")
    assert of(around, process_id="3").index == 3
    assert of() == Processes() and not of().launches
    assert of(processes="auto").count == "auto" and not of(processes="auto").launches


def test_a_number_alone_starts_them_all_here():
    assert of(processes="4").launches
    assert not of(processes="4", process_id="0", coordinator="h:1").launches
    assert not of(processes="1").launches


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(processes="four"), "not a number"),
        (dict(processes="0"), "1 or more"),
        (dict(processes="4", process_id="4", coordinator="h:1"), "count from 0"),
        (dict(processes="4", process_id="1"), "belong together"),
        (dict(processes="4", coordinator="h:1"), "belong together"),
        (dict(processes="auto", process_id="1"), "asks the scheduler"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(given, words):
    with pytest.raises(ProcessError, match=words) as caught:
        of(**given)
    assert "\n" not in str(caught.value)


# One write each: what three processes print in pieces may mingle.
PRINTS = (
    "import os; e = os.environ; "
    "os.write(1, f\"{e['WALLWM_PROCESSES']} {e['WALLWM_PROCESS_ID']}\\n\".encode())"
)


def test_every_process_is_told_its_number(capfd):
    assert launch(Processes(count=3), [sys.executable, "-c", PRINTS]) == 0
    assert sorted(capfd.readouterr().out.splitlines()) == ["3 0", "3 1", "3 2"]


def test_the_first_failure_is_the_status_and_ends_the_others():
    code = "import os, sys, time; i = int(os.environ['WALLWM_PROCESS_ID']); i == 1 and sys.exit(7); time.sleep(100)"
    began = time.monotonic()
    assert launch(Processes(count=3, heartbeat_s=1), [sys.executable, "-c", code], grace_s=0) == 7
    assert time.monotonic() - began < 60


def test_one_that_is_stopped_never_ends_by_itself():
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    sleeper.send_signal(signal.SIGSTOP)
    failed = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    assert await_all([sleeper, failed], 0.5) == 3
    assert sleeper.returncode == -signal.SIGKILL


def test_a_signal_is_reported_as_a_shell_does():
    killed = subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    assert await_all([killed], 10) == 137


def test_this_command_is_what_was_typed():
    program = "from wallwm_jax.parallel.processes import this_command; print(this_command()[1:])"
    done = subprocess.run(
        [sys.executable, "-c", program, "--processes=2"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(["-c", program, "--processes=2"])
    assert this_command()[0] == sys.executable


def test_alone_a_vote_is_its_own_answer():
    vote = Vote(make_mesh({"fsdp": -1}, jax.devices()[:1]))
    assert vote.alone and vote.cast(True) is True and vote.cast(False) is False


class RuntimeFailure(jax.errors.JaxRuntimeError):
    """What a step raises while it runs."""


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (ValueError("UNKNOWN: Gloo all-reduce failed: connection closed by peer"), ProcessError),
        (RuntimeFailure("INTERNAL: Gloo broadcast failed: timed out"), ProcessError),
        (RuntimeFailure("RESOURCE_EXHAUSTED: out of memory"), RuntimeFailure),
        (ValueError("the peer of a batch of 3 sequences"), ValueError),
    ],
)
def test_a_fellows_death_is_told_however_the_runtime_tells_it(monkeypatch, error, raised):
    kept = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes.atexit, "register", kept.append)
    with pytest.raises(raised) as caught:
        with processes.together():
            raise error
    assert type(caught.value) is raised and len(kept) == 1
    if raised is ProcessError:
        assert "another process of this run is gone" in str(caught.value)
        assert "\n" not in str(caught.value)
