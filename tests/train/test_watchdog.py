"""A thread that hangs ends its process, whatever it hangs in; SIGTERM is never missed."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wallwm_jax.train.signals import StopSignal
from wallwm_jax.train.watchdog import EXIT_HUNG

ROOT = Path(__file__).parents[2]

WATCHED = """
import ctypes, sys, time
from pathlib import Path
from wallwm_jax.train import watchdog
watchdog.GRACE_S = 2

def stuck_here():
    {hang}

with watchdog.Watchdog(Path(sys.argv[1]), process=3) as dog:
    for beat in range(8):  # a beat in time moves the deadline on
        dog.beat(f"batch {{beat}}", 1.0)
        time.sleep(0.2)
    dog.beat("step 12", 1.0)
    stuck_here()
"""


def started(code: str, *arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_hanging_thread_is_shown_and_ended(tmp_path):
    process = started(WATCHED.format(hang="time.sleep(60)"), tmp_path)
    _, said = process.communicate(timeout=50)
    assert process.returncode == EXIT_HUNG
    (line,) = [x for x in said.splitlines() if x.startswith("error: ")]
    assert "process 3" in line and "step 12" in line and "stacks-3.txt" in line
    assert "stuck_here" in said
    assert "stuck_here" in (tmp_path / "stacks-3.txt").read_text()


def test_one_that_never_gives_the_interpreter_back_is_ended_too(tmp_path):
    """`PyDLL` holds the interpreter's lock while it sleeps: no Python thread can run."""
    process = started(WATCHED.format(hang="ctypes.PyDLL(None).sleep(60)"), tmp_path)
    process.communicate(timeout=50)
    assert process.returncode == 1
    assert "stuck_here" in (tmp_path / "stacks-3.txt").read_text()


@pytest.mark.parametrize("hang", ["pass", "dog.rest(); time.sleep(3.5)"])
def test_who_ends_or_rests_is_left_alone(tmp_path, hang):
    process = started(WATCHED.format(hang=hang), tmp_path)
    _, said = process.communicate(timeout=50)
    assert process.returncode == 0, said
    assert list(tmp_path.iterdir()) == []


BUSY = """
import hashlib, sys, time
from wallwm_jax.train.signals import StopSignal

def compiler():
    # C code for minutes, in the main thread, without the interpreter's lock
    hashlib.pbkdf2_hmac("sha256", b"x", b"y", 400_000_000)

with StopSignal() as stop:
    stop.leave_at_once(sys.argv[1] == "may leave")
    print("ready", flush=True)
    if sys.argv[1] == "python":
        while not stop.asked:
            time.sleep(0.01)
        print("asked", flush=True)
        time.sleep(60)
    compiler()
"""


@pytest.mark.parametrize(
    ("where", "signals", "status"),
    [("may leave", 1, 0), ("has steps", 2, 143), ("python", 2, 143)],
)
def test_sigterm_is_seen_while_the_main_thread_is_in_c(where, signals, status):
    process = started(BUSY, where)
    assert process.stdout.readline() == "ready\n"
    for _ in range(signals):
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
    _, said = process.communicate(timeout=30)
    assert process.returncode == status, said


def asked(stop: StopSignal) -> bool:
    """Whether the signal that was just raised reaches it."""
    until = time.monotonic() + 10
    while not stop.asked and time.monotonic() < until:
        time.sleep(0.01)
    return stop.asked


def test_handlers_are_put_back_and_the_inner_context_is_asked():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal() as outer:
        with StopSignal() as inner:
            assert signal.getsignal(signal.SIGTERM) != before and not inner.asked
            signal.raise_signal(signal.SIGTERM)
            assert asked(inner) and not outer.asked
        signal.raise_signal(signal.SIGTERM)
        assert asked(outer)
    assert signal.getsignal(signal.SIGTERM) == before
