"""SIGTERM: the step in hand is saved, then the process leaves with status 0.

Python runs signal handlers between two instructions of the main thread, and that
thread may be inside a compiler for minutes. The interpreter's C handler, however,
writes the number of a signal into a pipe at once; a thread reads it there.
"""

import os
import signal
import sys
import threading

AFTER_SECOND = 128 + signal.SIGTERM
"""Exit status after a second SIGTERM, as a shell reports the signal itself."""


class Stopped(SystemExit):
    """The run was asked to stop and has saved its state: exit status 0."""

    def __init__(self, step: int):
        """Remembers the number of steps that are saved."""
        super().__init__(0)
        self.step = step


class StopSignal:
    """Whether SIGTERM has come; use it as a context around the training.

    Of two contexts, one inside the other, the inner one gets the signals. Outside of
    the main thread, where Python allows no handlers, it only says no.
    """

    def __init__(self) -> None:
        """Nothing changes before the context is entered."""
        self._asked = threading.Event()
        self._may_leave, self._lock = False, threading.Lock()
        self._pipe: tuple[int, int] | None = None
        self._before: tuple = ()

    @property
    def asked(self) -> bool:
        """Whether a signal has come."""
        return self._asked.is_set()

    def leave_at_once(self, allowed: bool) -> None:
        """Whether a signal may end the process where it stands, with status 0.

        Allow it while nothing would be lost: before the first step, that is while
        restoring and compiling.
        """
        with self._lock:
            self._may_leave = allowed
            if allowed and self.asked:
                self._leave()

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is not threading.main_thread():
            return self
        reading, writing = self._pipe = os.pipe()
        os.set_blocking(writing, False)
        wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        # The handler itself has nothing to do; without one the process would die.
        self._before = signal.signal(signal.SIGTERM, lambda *_: None), wakeup
        threading.Thread(target=self._read, args=(reading,), name="sigterm", daemon=True).start()
        return self

    def _read(self, reading: int) -> None:
        while number := os.read(reading, 1):
            if number[0] != signal.SIGTERM:
                continue
            if self.asked:
                os._exit(AFTER_SECOND)
            self._asked.set()
            with self._lock:
                if self._may_leave:
                    self._leave()
        os.close(reading)

    def _leave(self) -> None:
        print(
            "stopped by SIGTERM while no step was taken; the same command continues",
            file=sys.stderr,
        )
        sys.stderr.flush()
        os._exit(0)

    def __exit__(self, *error: object) -> None:
        if self._pipe is None:
            return
        signal.signal(signal.SIGTERM, self._before[0])
        signal.set_wakeup_fd(self._before[1])
        os.close(self._pipe[1])  # the thread reads the end of the pipe, and ends
        self._pipe = None
