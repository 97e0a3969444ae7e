"""Some steps of a run traced for xprof, on request."""

from pathlib import Path

import jax


class Tracing:
    """Starts and stops the profiler around some steps."""

    def __init__(self, folder: Path, first: int, steps: int):
        """Keeps what to trace.

        Args:
          folder: gets the trace.
          first: step whose dispatch begins it.
          steps: how many are traced; 0 is none.
        """
        self._folder, self._from, self._until = folder, first, first + steps
        self._on = False

    def at(self, step: int) -> None:
        """Starts or stops where it is time, before `step` is dispatched."""
        if step == self._from < self._until:
            jax.profiler.start_trace(str(self._folder))
            self._on = True
        elif step == self._until:
            self.close()

    def close(self) -> None:
        """Writes what was traced."""
        if self._on:
            self._on = False
            jax.profiler.stop_trace()
