"""Starts the mini run as processes of their own, and waits for them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from wallwm_jax.parallel.processes import free_port

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("mini_run.py")


def lines(folder: Path) -> list[dict]:
    """The whole lines of the run's log."""
    path = folder / "metrics.jsonl"
    text = path.read_text() if path.is_file() else ""
    return [json.loads(x) for x in text.splitlines(keepends=True) if x.endswith("\n")]


def start(count: int, folder: Path, *words: str) -> list[subprocess.Popen]:
    """The mini run as `count` processes that train together."""
    address = f"127.0.0.1:{free_port()}"
    fellows = lambda i: (  # noqa: E731
        {"WALLWM_PROCESSES": str(count)}
        | ({"WALLWM_PROCESS_ID": str(i), "WALLWM_COORDINATOR": address} if count > 1 else {})
    )
    folder.mkdir(exist_ok=True)
    return [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), *words],
            cwd=ROOT,
            env=os.environ
            | {"PYTHONPATH": f"{ROOT}:{SCRIPT.parent}", "OMP_NUM_THREADS": "1"}
            | fellows(i),
            stdout=subprocess.DEVNULL,
            stderr=open(folder / f"stderr-{i}.txt", "w"),  # noqa: SIM115  lives with the process
        )
        for i in range(count)
    ]


def await_steps(folder: Path, steps: int, processes: list[subprocess.Popen]) -> None:
    """Waits until the log holds so many steps."""
    until = time.monotonic() + 300
    while len(lines(folder)) < steps:
        assert all(p.poll() is None for p in processes), told(folder)
        assert time.monotonic() < until, told(folder)
        time.sleep(0.02)


def told(folder: Path) -> str:
    """The ends of what the processes said."""
    return "\n".join(p.read_text()[-1500:] for p in sorted(folder.glob("stderr-*.txt")))


def ended(processes: list[subprocess.Popen], seconds: float) -> list[int]:
    """Exit statuses of processes that have to end in time."""
    until = time.monotonic() + seconds
    for process in processes:
        process.wait(timeout=max(until - time.monotonic(), 0.1))
    return [process.returncode for process in processes]
