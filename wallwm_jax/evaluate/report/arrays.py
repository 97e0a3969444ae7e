"""Reads the array parts of a run folder, and checks that they fit together.

Arrays are read without pickle: a run folder may come from somewhere else.
"""

import dataclasses
import zipfile
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Integer, UInt8

_VIDEO = ("real", "imagined")
_ACTIONS = ("expert", "predicted", "mean_caption")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examples:
    """Held-out events: video in every view, and the actions made from it.

    Attributes:
      real, imagined: sampled frames; frame 0 is the observed one.
      frames: how many of the T frames of each example are valid.
      expert, predicted, mean_caption: position relative to the observation
        (cm, cm, cm) and gripper command (-1 open .. +1 closed).
      steps: how many of the A action steps of each example are valid.
      about: one {"task", "seed", "caption", "label"} per example.
    """

    real: UInt8[np.ndarray, "n v t h w 3"]
    imagined: UInt8[np.ndarray, "n v t h w 3"]
    frames: Integer[np.ndarray, "n"]
    expert: Float32[np.ndarray, "n a 4"]
    predicted: Float32[np.ndarray, "n a 4"]
    mean_caption: Float32[np.ndarray, "n a 4"]
    steps: Integer[np.ndarray, "n"]
    about: list[dict]

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.frames)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strip:
    """One closed-loop episode in the ego view.

    Attributes:
      event: index of the event being executed at each frame, -1 for none.
      step: control step of each frame.
    """

    frames: UInt8[np.ndarray, "n h w 3"]
    event: Integer[np.ndarray, "n"]
    step: Integer[np.ndarray, "n"]


def _malformed(path: Path, problem: str) -> ValueError:
    """The one error line of a malformed array file."""
    return ValueError(f"report: {path}: {problem}; run again the evaluation that writes this file")


def _load(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The named arrays of an .npz, or a one-line ValueError."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = sorted(set(names) - set(archive.files))
            if missing:
                raise _malformed(path, f"has no array {', '.join(missing)}")
            return {name: archive[name] for name in names}
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise _malformed(path, f"cannot be read ({error})") from error
    except ValueError as error:
        if str(error).startswith("report:"):
            raise
        raise _malformed(path, f"cannot be read ({error})") from error


def _same(path: Path, arrays: dict[str, np.ndarray], names: tuple[str, ...], shape: tuple) -> None:
    """Checks shapes: a number must agree, None is free but equal over `names`."""
    first = arrays[names[0]].shape
    for name in names:
        got = arrays[name].shape
        fits = len(got) == len(shape) and all(
            s in (None, g) for s, g in zip(shape, got, strict=True)
        )
        if not fits or got != first:
            want = "x".join("?" if s is None else str(s) for s in shape)
            raise _malformed(
                path, f"{name} has shape {got}, expected {want} like {names[0]} {first}"
            )


def _counts(path: Path, arrays: dict[str, np.ndarray], name: str, n: int, most: int) -> None:
    """Checks that `name` holds n integers in 1..most."""
    values = arrays[name]
    if values.shape != (n,) or values.dtype.kind not in "iu":
        raise _malformed(path, f"{name} is {values.dtype}{values.shape}, expected {n} integers")
    if n and not (values.min() >= 1 and values.max() <= most):
        raise _malformed(path, f"{name} lies in {values.min()}..{values.max()}, expected 1..{most}")


def read_examples(path: Path, about: list[dict] | None) -> Examples | None:
    """`eval/examples.npz` with the records of `eval/examples.json`; None if absent.

    Raises:
      ValueError: arrays missing, of disagreeing shapes, or not one record each.
    """
    if not path.is_file():
        return None
    arrays = _load(path, (*_VIDEO, "frames", *_ACTIONS, "steps"))
    n = len(arrays["frames"])
    _same(path, arrays, _VIDEO, (n, None, None, None, None, 3))
    _same(path, arrays, _ACTIONS, (n, None, 4))
    _counts(path, arrays, "frames", n, arrays["real"].shape[2])
    _counts(path, arrays, "steps", n, arrays["expert"].shape[1])
    for name in _VIDEO:
        if arrays[name].dtype != np.uint8:
            raise _malformed(path, f"{name} is {arrays[name].dtype}, expected uint8")
    if about is None or len(about) != n or not all(isinstance(a, dict) for a in about):
        count = "no" if about is None else len(about)
        raise _malformed(path.with_suffix(".json"), f"{count} records for {n} examples")
    for name in _ACTIONS:
        arrays[name] = arrays[name].astype(np.float32)
    return Examples(about=about, **arrays)


def read_strip(path: Path, *, event_count: int) -> Strip:
    """`eval/closed_loop_<task>.npz`, whose event indices must be below `event_count`.

    Raises:
      ValueError: arrays missing or of disagreeing lengths, or an unknown event.
    """
    arrays = _load(path, ("frames", "event", "step"))
    n = len(arrays["frames"])
    _same(path, arrays, ("frames",), (n, None, None, 3))
    _same(path, arrays, ("event", "step"), (n,))
    if arrays["frames"].dtype != np.uint8:
        raise _malformed(path, f"frames is {arrays['frames'].dtype}, expected uint8")
    if n and (arrays["event"].min() < -1 or arrays["event"].max() >= event_count):
        raise _malformed(
            path,
            f"event index {arrays['event'].max()} but the filmed episode has {event_count} events",
        )
    return Strip(**arrays)
