"""The rules a packed batch must keep, checked on numpy arrays."""

import numpy as np
from jaxtyping import Int, Shaped

from wallwm_jax.input.fields import FIELDS


def check_arrays(
    arrays: dict[str, Shaped[np.ndarray, "..."]],
    sizes: dict[str, int] | None = None,
    steps_per_frame: int = 8,
) -> None:
    """Raises ValueError, naming the field and the sequence, on a broken rule.

    Args:
      arrays: every field of `FIELDS`.
      sizes: axis letter -> size; None takes them from the arrays themselves.
      steps_per_frame: K_p, action steps at most per future latent frame.
    """
    _check_shapes(arrays, dict(sizes or {}))
    for row in range(len(arrays["event_id"])):
        _check_sequence({name: x[row] for name, x in arrays.items()}, row, steps_per_frame)


def _check_shapes(arrays: dict[str, np.ndarray], sizes: dict[str, int]) -> None:
    """Binds every axis letter once and asks dtypes, shapes, finite values."""
    for name, (dtype, letters) in FIELDS.items():
        x, axes = arrays[name], letters.split()
        if x.dtype != dtype:
            raise ValueError(f"batch.{name} is {x.dtype}; it must be {np.dtype(dtype)}")
        if x.ndim != len(axes):
            raise ValueError(f"batch.{name} has shape {x.shape}; its axes are [{letters}]")
        for axis, size in zip(axes, x.shape, strict=True):
            want = int(axis) if axis.isdigit() else sizes.setdefault(axis, size)
            if size != want:
                raise ValueError(
                    f"batch.{name} has shape {x.shape} for [{letters}]; "
                    f"axis {axis} should be {want}"
                )
        if x.dtype.kind == "f" and not np.isfinite(x).all():
            raise ValueError(f"batch.{name} holds NaN or Inf; find the event that brought it")


def _check_sequence(s: dict[str, np.ndarray], row: int, steps_per_frame: int) -> None:
    """Asks that frames, actions and slots of one sequence tell the same story."""
    frames = _runs(s["frame_segment"], s["frame_index"], f"sequence {row}: frame")
    steps = _runs(s["action_segment"], s["action_index"], f"sequence {row}: action")
    count = len(frames)
    if len(steps) != count:
        raise ValueError(f"sequence {row}: {count} events in frames but {len(steps)} in actions")
    used = np.arange(len(s["event_id"])) < count
    _check_slots(s, row, used)
    for slot in range(count):
        if s["event_length"][slot] != steps[slot]:
            raise ValueError(
                f"sequence {row}: event_length[{slot}] is {s['event_length'][slot]} but "
                f"{steps[slot]} action steps carry segment {slot + 1}"
            )
        if steps[slot] > steps_per_frame * (frames[slot] - 1):
            raise ValueError(
                f"sequence {row}: event {slot + 1} has {steps[slot]} action steps on "
                f"{frames[slot] - 1} future latent frames; at most {steps_per_frame} per frame"
            )
    _check_padding(s, row)


def _runs(
    segment: Int[np.ndarray, "n"], index: Int[np.ndarray, "n"], where: str
) -> list[int]:
    """Lengths of segments 1, 2, ... that must lie one after another, then padding."""
    count = int(segment.max(initial=0))
    lengths = [int((segment == i + 1).sum()) for i in range(count)]
    padding = len(segment) - sum(lengths)
    want = np.repeat([*range(1, count + 1), 0], [*lengths, padding])
    if 0 in lengths or not np.array_equal(segment, want):
        raise ValueError(f"{where}_segment must be runs 1, 2, ... then 0, got {segment.tolist()}")
    want = np.concatenate([np.arange(n) for n in lengths] + [np.zeros(padding, int)])
    if not np.array_equal(index, want):
        raise ValueError(f"{where}_index must count from 0 in each segment, got {index.tolist()}")
    return lengths


def _check_slots(s: dict[str, np.ndarray], row: int, used: np.ndarray) -> None:
    """Used event slots carry an id, a length, text and a mask; unused ones do not."""
    tests = {
        "event_id": s["event_id"] >= 0,
        "event_length": s["event_length"] > 0,
        "text_mask": s["text_mask"].any(-1),
        "action_mask": s["action_mask"].any(-1),
    }
    for name, ok in tests.items():
        if not np.array_equal(ok, used):
            slot = int(np.argmax(ok != used))
            raise ValueError(
                f"sequence {row}: {name}[{slot}] looks {'unused' if used[slot] else 'used'} but "
                f"{int(used.sum())} events are packed"
            )


def _check_padding(s: dict[str, np.ndarray], row: int) -> None:
    """Padding never counts; masked action dimensions are 0; cameras are rigid."""
    if s["visible"][:, s["frame_segment"] == 0].any():
        raise ValueError(f"sequence {row}: visible is True on a padding frame")
    # Slot -1 (segment 0) reads an all-False row, so padding must be 0 as well.
    rows = np.concatenate([s["action_mask"], np.zeros_like(s["action_mask"][:1])])
    if s["actions"][~rows[s["action_segment"] - 1]].any():
        raise ValueError(f"sequence {row}: actions are not 0 where masked or padded")
    rotation = s["extrinsics"][..., :3, :3].astype(np.float64)
    gram = np.einsum("fvij,fvkj->fvik", rotation, rotation)
    if np.abs(gram - np.eye(3)).max() > 1e-3 or (s["extrinsics"][..., 3, :] != [0, 0, 0, 1]).any():
        raise ValueError(f"sequence {row}: extrinsics are not rigid world -> camera transforms")
