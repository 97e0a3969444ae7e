"""What a run says about itself: metrics.jsonl, the progress bar, TensorBoard.

Figures of a step stay on the devices until a line is due. One step runs ahead of
the one whose figures have arrived, so devices never wait for Python, and Python
never runs away from them.
"""

import json
import os
import time
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import Array
from tqdm import tqdm

from wallwm_jax.errors import UserError
from wallwm_jax.train.utilisation import utilisation


@runtime_checkable
class ScalarWriter(Protocol):
    """What is asked of a TensorBoard writer."""

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Records one number of one step."""


class NonFiniteError(UserError):
    """Too many updates in a row were not finite."""


def stop_if_diverged(first: int, metrics: list[dict[str, Any]], limit: int) -> None:
    """Raises NonFiniteError when more than `limit` updates in a row were not taken.

    Args:
      first: step of the first entry.
      metrics: of consecutive steps, as `train_step` gives them.
      limit: updates in a row that may be skipped.
    """
    for step, values in enumerate(metrics, first):
        if (row := int(values["skipped_in_row"])) > limit:
            raise NonFiniteError(
                f"the last {row} updates up to step {step} were not finite (loss {float(values['loss']):g}, "
                f"gradient norm {float(values['grad_norm']):g}) and config.limits.nonfinite allows {limit}; "
                f"parameters are as at step {step - row + 1}: look at the data, or lower the learning rate"
            )


class MetricsLog:
    """metrics.jsonl: one line per step, in order, none twice.

    Losses are written as decimal and as hexadecimal floats; the latter are
    exact, so two runs can be compared bit by bit. A loss that is not finite is
    written as Python's JSON does, NaN or Infinity.

    Attributes:
      logged: steps below this one were taken before, by this or another attempt.
    """

    def __init__(self, path: Path, keep_below: int, *, writes: bool = True):
        """Opens the log, dropping lines of steps the run will take again.

        Args:
          path: the file.
          keep_below: first step that this attempt takes.
          writes: False for all processes but one: the file is left alone.
        """
        self.logged = keep_below
        self._file = None
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        whole = [line for line in lines if line.endswith("}\n")]
        steps = [json.loads(line)["step"] for line in whole]
        self.logged = max([keep_below, *(step + 1 for step in steps)])
        if not writes:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line, step in zip(whole, steps, strict=True) if step < keep_below]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(kept))
        os.replace(temporary, path)
        self._file = open(path, "a")  # noqa: SIM115  closed by __exit__

    def write(self, first: int, lines: list[dict[str, float]]) -> None:
        """Appends consecutive steps, the first of which is number `first`."""
        if self._file is None:
            return
        for step, values in enumerate(lines, first):
            line = {"step": step, "loss_hex": values["loss"].hex()} | values
            self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()


class Recorder:
    """Gathers the figures of steps and hands them on, a few steps at a time.

    Attributes:
      pending: steps whose figures were not handed on yet.
    """

    def __init__(
        self,
        log: MetricsLog,
        bar: tqdm,
        *,
        limit: int,
        writer: ScalarWriter | None = None,
        peak: float | None = None,
    ):
        """Starts empty.

        Args:
          log: metrics.jsonl.
          bar: shown while training.
          limit: see `stop_if_diverged`.
          writer: of TensorBoard scalars.
          peak: operations per second of all devices; None: not known.
        """
        self._log, self._bar, self._limit = log, bar, limit
        self._writer, self._peak = writer, peak
        self._metrics: list[dict[str, Array]] = []
        self._seconds: list[dict[str, float]] = []
        self._flops: list[float | None] = []
        self._since = time.monotonic()

    @property
    def pending(self) -> int:
        """How many steps have not been handed on."""
        return len(self._metrics)

    def begin(self) -> None:
        """A step begins: what was done since the last one is not its time."""
        self._since = time.monotonic()

    def add(self, metrics: dict[str, Array], data_s: float, flops: float | None = None) -> None:
        """Takes a dispatched step's figures and waits for those of the step before it.

        Args:
          metrics: as `train_step` gives them, still on devices.
          data_s: seconds that its batch was waited for.
          flops: operations of the step; None: not known.
        """
        self._metrics.append(metrics)
        if len(self._metrics) > 1:
            jax.block_until_ready(self._metrics[-2])
        now = time.monotonic()
        self._seconds.append({"step_s": now - self._since, "data_s": data_s})
        self._flops.append(flops)
        self._since = now

    def hand_on(self, following: int) -> None:
        """Writes what is pending; the steps before number `following`.

        Raises:
          NonFiniteError: too many of them in a row were not finite.
        """
        fetched = jax.device_get(self._metrics)
        now = time.monotonic()
        # Waiting for the last step belongs to it; the mean of these steps is right either way.
        self._seconds[-1]["step_s"] += now - self._since
        self._since = now
        first = following - len(fetched)
        lines = [
            {k: float(v) for k, v in values.items()} | seconds | self._rates(values, seconds, flops)
            for values, seconds, flops in zip(fetched, self._seconds, self._flops, strict=True)
        ]
        lines[-1] |= device_memory()
        self._log.write(first, lines)
        if self._writer is not None:
            for step, line in enumerate(lines, first):
                for name, value in line.items():
                    self._writer.add_scalar(name, value, step)
        self._bar.set_postfix(loss=f"{lines[-1]['loss']:.3f}")
        self._bar.update(len(lines))
        self._metrics, self._seconds, self._flops = [], [], []
        stop_if_diverged(first, fetched, self._limit)

    def _rates(
        self, values: dict[str, Any], seconds: dict[str, float], flops: float | None
    ) -> dict[str, float]:
        taken = max(seconds["step_s"], 1e-9)
        rates = {"tokens_per_s": float(values["tokens"]) / taken}
        return rates | utilisation(flops, taken, self._peak)


def device_memory() -> dict[str, float]:
    """Bytes in use and their highest so far on this process's first device, where it tells."""
    stats = jax.local_devices()[0].memory_stats() or {}
    names = {"memory_bytes": "bytes_in_use", "memory_peak_bytes": "peak_bytes_in_use"}
    return {name: float(stats[key]) for name, key in names.items() if key in stats}
