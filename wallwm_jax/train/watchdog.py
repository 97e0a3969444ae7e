"""Ends a process whose training thread waits too long, so that somebody can restart it.

A process that hangs in a collective, in a device or in its data keeps its heartbeat
alive, because that is sent by another thread: the others then wait for it for ever.
Here every process watches itself. What it does when time is up needs no answer from
the thread that hangs: stacks of all threads to stderr and to a file, one line, and
`os._exit`.
"""

import faulthandler
import os
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

EXIT_HUNG = 75
"""Exit status of a process that ended itself: "temporary failure" of sysexits.h, try again."""

GRACE_S = 10
"""Seconds after which C code takes over, when Python code gets no turn at all."""


class Watchdog:
    """A deadline that the training thread moves on with every `beat`.

    Two guards: a Python thread, which says what was waited for; and, `GRACE_S`
    later, faulthandler's C thread (exit status 1), which fires even when whatever
    hangs holds the interpreter's lock.
    """

    def __init__(self, folder: Path, *, process: int = 0):
        """Watches nothing until the first beat.

        Args:
          folder: of the file stacks-PROCESS.txt; exists.
          process: number of this process, for the file's name and the message.
        """
        self.path = folder / f"stacks-{process}.txt"
        self._process = process
        self._file = open(self.path, "w")  # noqa: SIM115  closed by __exit__
        self._changed = threading.Condition()
        self._waiting: tuple[str, float, float] | None = None  # what, limit, deadline
        self._open = True
        self._thread = threading.Thread(target=self._watch, name="step-watchdog", daemon=True)
        self._thread.start()

    def beat(self, what: str, limit_s: int | float) -> None:
        """The training thread is alive, and from now on waits for `what`.

        Args:
          what: for the message, as "batch 12" or "step 12".
          limit_s: longest time to the next beat, in seconds.
        """
        with self._changed:
            self._waiting = what, limit_s, time.monotonic() + limit_s
            self._changed.notify()
        faulthandler.dump_traceback_later(limit_s + GRACE_S, exit=True, file=self._file)

    def rest(self) -> None:
        """Nothing is waited for until the next beat."""
        faulthandler.cancel_dump_traceback_later()
        with self._changed:
            self._waiting = None
            self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            while self._open:
                if self._waiting is None:
                    self._changed.wait()
                    continue
                what, limit, deadline = self._waiting
                left = deadline - time.monotonic()
                if left <= 0:
                    self._end(what, limit)
                # A beat only moves the deadline away: no need to wake up for it.
                self._changed.wait(left)

    def _end(self, what: str, limit: int | float) -> NoReturn:
        for file in (self._file, sys.__stderr__):
            faulthandler.dump_traceback(file, all_threads=True)
        print(
            f"error: process {self._process} waited more than {limit:g} s for {what}; where its threads "
            f"are is in {self.path}; start the run again, or raise config.limits if this is its usual pace",
            file=sys.__stderr__,
            flush=True,
        )
        os._exit(EXIT_HUNG)

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(self, *error: object) -> None:
        self.rest()
        with self._changed:
            self._open = False
            self._changed.notify()
        self._thread.join()
        self._file.close()
        if self.path.stat().st_size == 0:
            self.path.unlink()
