"""Goodput: where the wall time of a run went, attempt by attempt.

Every moment belongs to exactly one of

    init      data opened, state made, whatever is not named below
    compile   steps traced and compiled
    restore   read from a checkpoint
    data      waited for a batch
    step      computed, and its figures fetched
    save      blocked by a checkpoint (the rest of its writing runs beside the steps)
    lost      steps, and their data, that an interrupted attempt had taken already

so the parts add up to the wall time. They go to goodput.jsonl as the run goes on:
what a killed attempt has written last is what is known of it.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

PARTS = ("init", "compile", "restore", "data", "step", "save", "lost")


class Goodput:
    """A clock with one hand per part."""

    def __init__(self, began: float | None = None, clock: Callable[[], float] = time.monotonic):
        """Starts in "init".

        Args:
          began: when that was, by the same clock; None is now.
          clock: seconds that never go back.
        """
        self._clock = clock
        self._began = self._since = clock() if began is None else began
        self._part = "init"
        self._seconds = dict.fromkeys(PARTS, 0.0)

    def enter(self, part: str) -> None:
        """From now on time goes to `part`, one of PARTS."""
        now = self._clock()
        self._seconds[self._part] += now - self._since
        self._part, self._since = part, now
        self._seconds[part] += 0.0  # a name that is none is refused here

    def seconds(self) -> dict[str, float]:
        """Seconds of every part and of all, "wall", until now."""
        self.enter(self._part)
        return self._seconds | {"wall": self._since - self._began}


class GoodputLog:
    """goodput.jsonl: what each attempt has spent so far, newest line last."""

    def __init__(self, path: Path, goodput: Goodput, *, every_s: int | float = 10.0):
        """Counts the attempts that are in the file, and ends a half-written line.

        Args:
          path: its folder exists.
          goodput: the clock of this attempt.
          every_s: lines come at most this often, but for the last.
        """
        self._path, self._goodput, self._every = path, goodput, every_s
        self._attempt = 1 + max((line["attempt"] for line in read_lines(path)), default=0)
        self._written = -1.0
        if path.is_file() and not path.read_bytes().endswith(b"\n"):
            with open(path, "a") as file:
                file.write("\n")  # or the next line would be lost with the half one

    def write(self, step: int, *, last: bool = False) -> None:
        """Appends what was spent until `step` steps were reached, if it is time."""
        seconds = self._goodput.seconds()
        if not last and 0 <= self._written and seconds["wall"] - self._written < self._every:
            return
        self._written = seconds["wall"]
        line = {"attempt": self._attempt, "reached": step} | {
            name: round(value, 6) for name, value in seconds.items()
        }
        with open(self._path, "a") as file:
            file.write(json.dumps(line) + "\n")


def read_lines(path: Path) -> list[dict]:
    """Whole lines of a JSON-lines file; none when there is no file.

    A killed process may leave half a line, also in the middle of the file when
    another attempt went on after it.
    """
    found = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def summarise(path: Path) -> dict[str, float]:
    """Seconds of every part over all attempts, and "goodput", the share of steps in it.

    Raises:
      ValueError: nothing was written.
    """
    newest = {line["attempt"]: line for line in read_lines(path)}
    if not newest:
        raise ValueError(f"{path} holds no attempt; train first")
    total = {part: sum(line[part] for line in newest.values()) for part in (*PARTS, "wall")}
    return total | {
        "attempts": float(len(newest)),
        "goodput": total["step"] / max(total["wall"], 1e-9),
    }
