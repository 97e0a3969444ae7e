"""What is done to a run of several processes: one of them fails, or their number changes.

Functions as in `chaos_rounds`: (toy, rounds, rng) -> `Outcome`.
"""

import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

from experiments.chaos_compare import Life, Outcome, lives
from experiments.chaos_toy import (
    HANG,
    STAGE,
    Toy,
    batches,
    ended,
    losses,
    wait_for_step,
)

COUNT, HEARTBEAT_S, LIMIT_S, SLACK_S = 4, 10, 10, 5
AMONG = {
    "pack.sequences": COUNT,
    "limits.heartbeat_s": HEARTBEAT_S,
    "limits.step_s": float(LIMIT_S),
    "limits.first_step_s": 90.0,
}
PATIENT = AMONG | {"limits.step_s": 600.0, "limits.first_step_s": 600.0}
"""For the undisturbed run, whose programs nobody may have compiled yet, on one core for all."""

HARMS = {
    "one killed": signal.SIGKILL,
    "coordinator killed": signal.SIGKILL,
    "one stopped": signal.SIGSTOP,
    "thread hung": HANG,
}
PATIENCE_S = 120
"""Longest wait for fellows to end; what takes longer than it may is a difference anyway."""


def one_fails(toy: Toy, rounds: int, rng: random.Random) -> Outcome:
    """R9: of four processes one is killed, stopped or hangs; all end in time, and go on as R1's.

    `rounds` of each kind. Whoever started them starts all again: that is `lives`.
    """
    four, bad = toy.fellows(COUNT), []
    left = [kind for kind in HARMS for _ in range(rounds)]
    rng.shuffle(left)
    seen: dict[str, list[float]] = {kind: [] for kind in HARMS}
    draw = partial(rng.randint, 1, 2 * four.every)
    undisturbed = four.reference(PATIENT)
    for life in lives(four, AMONG, bad, lambda: bool(left), draw, undisturbed):
        time.sleep(rng.uniform(0, 0.2))
        if not all(process.is_alive() for process in life.process.processes):
            continue  # it came to its end in the meantime
        seconds, differs = _round(life, left[-1], rng)
        seen[left.pop()].append(seconds)
        bad += differs
    slowest = ", ".join(f"{kind} {max(times, default=0):.1f} s" for kind, times in seen.items())
    return Outcome(sum(map(len, seen.values())), bad, f"slowest end: {slowest}")


def _round(life: Life, kind: str, rng: random.Random) -> tuple[float, list[str]]:
    """Seconds until all who can end have ended, and what was wrong with their ends."""
    processes = life.process.processes
    index = 0 if kind == "coordinator killed" else rng.randrange(1, COUNT)
    before = _waits(life.folder)
    began = time.monotonic()
    os.kill(processes[index].pid, HARMS[kind])
    # One that is stopped ends when it is killed, by whoever started it.
    able = [p for i, p in enumerate(processes) if kind != "one stopped" or i != index]
    _await_all(able)
    seconds = time.monotonic() - began
    statuses = [process.exitcode for process in able]
    ended(life.process)
    # Its limit depends on what the thread that hangs was at: a step, or a checkpoint.
    limits = _waits(life.folder)[len(before) :] or [LIMIT_S]
    bound = SLACK_S + (max(limits) if kind == "thread hung" else HEARTBEAT_S)
    told = f"{life.folder}: {kind}, process {index}, at step {len(losses(life.folder))}"
    bad = []
    if not all(statuses):
        bad.append(f"{told}: statuses {statuses}, but all must end and none with 0; read child.log")
    if seconds > bound:
        bad.append(f"{told}: all had ended after {seconds:.1f} s, not {bound:g}; read child.log")
    return seconds, bad


def _await_all(processes: Sequence[BaseProcess]) -> None:
    until = time.monotonic() + PATIENCE_S
    for process in processes:
        process.join(max(until - time.monotonic(), 0))


def _waits(folder: Path) -> list[float]:
    """Limits, in seconds, of what a watchdog has ended so far."""
    text = (folder / "child.log").read_text()
    return [float(limit) for limit in re.findall(r"waited more than (\S+) s for", text)]


def fewer_processes(toy: Toy, rounds: int, rng: random.Random) -> Outcome:
    """R8: four processes, then two, then one, stopped inside an epoch: the batches of one alone."""
    changes, bad, worst = {"pack.sequences": COUNT, f"stages.{STAGE}.steps": 40}, [], 0.0
    alone = toy.reference(changes)
    for _ in range(rounds):
        folder = toy.fresh("fewer")
        for count in (4, 2, 1):
            some = toy.fellows(count)
            process = some.start(folder, changes)
            if count > 1 and wait_for_step(process, folder, rng.randint(1, 9)):
                process.terminate()
            process.join(PATIENCE_S)
            if status := ended(process):
                bad.append(f"{folder}: {count} processes: status {status}; read its child.log")
        if (read := _sequences(folder)) != (wanted := _sequences(alone)):
            wrong = [n for n in wanted if read.get(n) != wanted[n]]
            bad.append(f"{folder}: batches {wrong[:3]} have other sequences than {alone}'s")
        drawn = Counter(event for _, _, _, events in batches(folder) for event in events)
        if max(drawn.values()) - min(drawn.values()) > 1:
            bad.append(f"{folder}: an event was lost or repeated within an epoch: {drawn}")
        worst = max(worst, _apart(folder, alone))
    if worst > 1e-5:
        bad.append(f"{toy.root}: losses differ by {worst:.1e} of themselves, not 1e-5")
    return Outcome(rounds, bad, f"losses within {worst:.1e}")


def _sequences(folder: Path) -> dict[int, list[str]]:
    """SHA-1 of the sequences of every global batch, in the order of who read them."""
    found: dict[int, list[str]] = {}
    for number, _, rows, _ in batches(folder):
        found[number] = [*found.get(number, []), *rows]
    return found


def _apart(folder: Path, other: Path) -> float:
    """Largest relative difference of two runs' losses."""
    ours, theirs = losses(folder), losses(other)
    if ours.keys() != theirs.keys():
        return float("inf")
    return max(abs(float.fromhex(ours[s]) / float.fromhex(theirs[s]) - 1) for s in theirs)
