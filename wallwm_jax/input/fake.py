"""Random but valid packed batches: tests and initialisation need no data."""

import numpy as np
from jaxtyping import Float32, Shaped

from wallwm_jax.input.assemble import EventItem, assemble
from wallwm_jax.input.fields import ACTION_DIMS, BatchDims

PIXELS_PER_CELL = 8
"""Pixels per latent cell that the fake cameras assume."""


def fake_arrays(
    dims: BatchDims, seed: int, steps_per_frame: int = 8
) -> dict[str, Shaped[np.ndarray, "..."]]:
    """All fields of a batch, [B, ...]; see `Batch.fake`."""
    if dims.frames < 2:
        raise ValueError(f"a fake batch needs frames >= 2 (key frame + future), got {dims.frames}")
    rng = np.random.default_rng(seed)
    rows, next_id = [], 0
    for row in range(dims.sequences):
        lengths = _event_lengths(rng, dims, row, steps_per_frame)
        items = [_item(rng, dims, n, steps_per_frame, next_id + i) for i, n in enumerate(lengths)]
        next_id += len(items)
        rows.append(assemble(items, dims))
    return {name: np.stack([x[name] for x in rows]) for name in rows[0]}


def _event_lengths(
    rng: np.random.Generator, dims: BatchDims, row: int, steps_per_frame: int
) -> list[int]:
    """Action steps of the events of sequence `row`.

    No event takes more than about a third of the frames, so that five frames
    already hold two events. Odd rows leave at least one frame of padding.
    """
    frames, actions = max(2, dims.frames - row % 2), dims.actions
    longest = min(max(1, dims.frames // 3 - 1) * steps_per_frame, dims.actions)
    lengths = []
    for length in rng.integers(1, longest + 1, 4 * dims.events):
        need = 1 + -(-int(length) // steps_per_frame)
        if need <= frames and length <= actions and len(lengths) < dims.events:
            frames, actions = frames - need, actions - int(length)
            lengths.append(int(length))
    return lengths  # never empty: the first draw always fits


def _item(
    rng: np.random.Generator, dims: BatchDims, length: int, steps_per_frame: int, event_id: int
) -> EventItem:
    """One random event of `length` action steps."""
    frames = 1 + -(-length // steps_per_frame)
    visible = np.ones((dims.views, frames, dims.height, dims.width), bool)
    visible[:, :, 0] = rng.random() > 0.3 or dims.height == 1  # sometimes a black top border
    mask = np.arange(ACTION_DIMS) < (ACTION_DIMS // 2 if rng.random() < 0.8 else ACTION_DIMS)
    tokens = 1 if rng.random() < 0.2 else int(rng.integers(1, dims.text + 1))
    text_mask = np.arange(dims.text) < tokens
    text = np.where(text_mask, rng.integers(2, 12, dims.text), 0)
    text[tokens - 1] = 1  # the end token
    intrinsics, extrinsics = _cameras(rng, dims, frames)
    return EventItem(
        latents=rng.standard_normal(
            (dims.views, frames, dims.height, dims.width, dims.channels), np.float32
        ),
        visible=visible,
        intrinsics=intrinsics,
        extrinsics=extrinsics,
        actions=rng.standard_normal((length, ACTION_DIMS), np.float32) * mask,
        action_mask=mask,
        state=rng.standard_normal(dims.state, np.float32),
        text=text.astype(np.int32),
        text_mask=text_mask,
        event_id=event_id,
    )


def _cameras(
    rng: np.random.Generator, dims: BatchDims, frames: int
) -> tuple[Float32[np.ndarray, "f v 3 3"], Float32[np.ndarray, "f v 4 4"]]:
    """Views on an arc, all looking at one point 1 m away; the last one moves."""
    target = rng.uniform(-0.1, 0.1, 3)
    angles = np.linspace(0, np.pi / 2, dims.views) + rng.uniform(-0.1, 0.1, dims.views)
    extrinsics = np.zeros((frames, dims.views, 4, 4), np.float32)
    for view, angle in enumerate(angles):
        for frame in range(frames):
            moved = angle + (0.03 * frame if view == dims.views - 1 else 0.0)
            eye = target + [np.cos(moved), np.sin(moved), 0.6]
            extrinsics[frame, view] = _look_at(eye, target)
    height, width = dims.height * PIXELS_PER_CELL, dims.width * PIXELS_PER_CELL
    focal = 0.5 * height / np.tan(np.radians(25))
    k = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], np.float32)
    return np.broadcast_to(k, (frames, dims.views, 3, 3)).copy(), extrinsics


def _look_at(
    eye: Shaped[np.ndarray, "3"], target: Shaped[np.ndarray, "3"]
) -> Shaped[np.ndarray, "4 4"]:
    """World -> camera of a camera at `eye` that sees `target` in its centre.

    OpenCV axes: x right, y down, z forward; world z is up.
    """
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    out = np.eye(4)
    out[:3, :3] = np.stack([right, np.cross(forward, right), forward])
    out[:3, 3] = -out[:3, :3] @ eye
    return out
