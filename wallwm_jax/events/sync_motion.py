"""How much moves at every step, in pictures and in the robot, free of what tells no time.

Two streams of one episode show the same motion on two clocks. A camera and a
joint encoder differ in unit, in how large the arm is for them and in what they
miss. What both tell is *when* something starts, stops, turns or changes pace.
So every signal becomes a wave: slow changes are taken off, and every second of
the episode is made equally loud.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Float32, Shaped

from wallwm_jax.episodes.film import BLOCK, Film
from wallwm_jax.events import motion

PICTURE = 64
"""Pixels along the longer side of the pictures that are compared."""

CELLS = 8  # cells of change along each side of a picture
DRIFT_CELLS = 4  # cells of drift along each side
FLAT = 4.0  # squared grey levels per pixel: the slope that noise makes on a wall

SLOW_SECONDS = 0.35  # slower changes say where the arm is, not when it moves
LOUD_SECONDS = 1.0  # every stretch of this length has the same say
QUIET = 0.3  # share of the usual loudness below which a stretch is silence
FLOOR = 0.02  # of the usual speed: below, motion is noise
SPIKE = 3.0  # times the 90th percentile: a faster step is a fault, not a motion
RESPONSE = 1 - np.exp(-1)  # share of the way to its command that a limb goes in a step
SHORTEST = 12  # steps a wave needs


@dataclasses.dataclass(frozen=True)
class PictureMotion:
    """What moves between the observations of one view.

    Attributes:
      change: mean change of brightness per cell, grey levels 0..255.
      drift: how far the content of each cell seems to move, pixels of the shrunk
        picture: x of all cells, then y (least squares over the cell, so only
        motion across an edge is seen).
    """

    change: Float32[np.ndarray, "steps rows columns"]
    drift: Float32[np.ndarray, "steps axes"]

    def part(self, first: int, last: int) -> "PictureMotion":
        """What moves between the observations first..last."""
        return PictureMotion(self.change[first:last], self.drift[first:last])


def picture_motion(film: Film) -> PictureMotion:
    """Reads a film forward once, in blocks, and shrinks it on the way.

    Minutes of VGA video never lie in memory: 64 pictures at a time do.
    """
    change, drift, slope, last = [], [], 0.0, None
    for first in range(0, len(film), BLOCK):
        grey = shrunk(np.asarray(film[first : first + BLOCK]))
        if last is not None:
            grey = np.concatenate([last, grey])
        step, middle = np.diff(grey, axis=0), (grey[1:] + grey[:-1]) / 2
        # Pictures of one row or column have no slope along it.
        along = [_slope(middle, axis) for axis in (2, 1)]
        change.append(_cells(np.abs(step), CELLS))
        drift.append(np.stack([_cells(-step * g, DRIFT_CELLS) for g in along], 1))
        slope = slope + _cells(along[0] ** 2 + along[1] ** 2, DRIFT_CELLS).sum(0)
        last = grey[-1:]
    moved = np.concatenate(drift)
    # One slope for the whole film: a cell that darkens must not seem to speed up.
    moved = moved / (slope / max(len(moved), 1) + FLAT)
    return PictureMotion(np.concatenate(change), moved.reshape(len(moved), -1).astype(np.float32))


def shrunk(pictures: Shaped[np.ndarray, "k h w 3"]) -> Float32[np.ndarray, "k rows columns"]:
    """Brightness of pictures, box-filtered so that the longer side is at most `PICTURE`."""
    height, width = pictures.shape[1:3]
    block = max(1, -(-max(height, width) // PICTURE))
    rows, columns = max(1, height // block), max(1, width // block)
    # Every other pixel of a large block is enough, and a quarter of the work.
    stride = 2 if block >= 6 else 1
    cut = pictures[:, : rows * block, : columns * block]
    cut = cut.reshape(len(cut), rows, -1, columns, cut.shape[2] // columns, 3)
    small = cut[:, :, ::stride, :, ::stride].mean((2, 4), dtype=np.float32)
    return small @ np.array([0.299, 0.587, 0.114], np.float32)


def _slope(grey: np.ndarray, axis: int) -> np.ndarray:
    return np.gradient(grey, axis=axis) if grey.shape[axis] > 1 else np.zeros_like(grey)


def _cells(values: np.ndarray, count: int) -> np.ndarray:
    """Means over at most `count` by `count` parts of each picture."""
    for axis in (1, 2):
        parts = min(count, values.shape[axis])
        edges = np.linspace(0, values.shape[axis], parts + 1).astype(int)
        shape = [1, 1, 1]
        shape[axis] = -1
        sums = np.add.reduceat(values, edges[:-1], axis=axis)
        values = sums / np.diff(edges).reshape(shape)
    return values.astype(np.float32)


def response(command: Float[np.ndarray, "observations c"]) -> Float[np.ndarray, "observations c"]:
    """Where a controller that closes most of the gap every step would be.

    A command jumps and a limb cannot. Compared raw, the lag between them would
    depend on the path: longer where the arm stops, shorter where it cruises.
    """
    reached = np.array(command, np.float64)
    for t in range(1, len(reached)):
        reached[t] = reached[t - 1] + RESPONSE * (reached[t] - reached[t - 1])
    return reached


def velocity(path: Float[np.ndarray, "observations c"]) -> Float[np.ndarray, "steps c"]:
    """Change per step of each column, spikes cut, smoothed over three steps."""
    return binomial(_without_spikes(np.diff(np.asarray(path, np.float64), axis=0)))


def _without_spikes(moved: np.ndarray) -> np.ndarray:
    if not len(moved):
        return moved
    top = SPIKE * np.quantile(np.abs(moved), 0.9, axis=0)
    # A column that rarely moves (a gripper that snaps) has no usual speed to cut at.
    top = np.where(top > 0, top, np.inf)
    return np.clip(moved, -top, top)


def binomial(signal: Float[np.ndarray, "t *c"]) -> Float[np.ndarray, "t *c"]:
    """Weights 1 2 1 over time: they remove what alternates from step to step.

    Cameras and encoders that refresh at half the rate of the record do that.
    """
    padded = np.pad(signal, [(1, 1)] + [(0, 0)] * (signal.ndim - 1), mode="edge")
    return (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4


def amounts(path: Float[np.ndarray, "observations c"]) -> Float[np.ndarray, "steps 1"]:
    """How far a limb moves at each step, whatever the direction."""
    moved = np.linalg.norm(np.diff(np.asarray(path, np.float64), axis=0), axis=-1)
    return _without_spikes(moved[:, None])


def directions(
    path: Float[np.ndarray, "observations c"], most: int
) -> Float[np.ndarray, "steps k"]:
    """The `most` strongest independent motions of a limb."""
    return strongest(_without_spikes(np.diff(np.asarray(path, np.float64), axis=0)), most)


def strongest(signals: Float[np.ndarray, "t c"], most: int) -> Float[np.ndarray, "t k"]:
    """Principal components over time, at most `most` of them."""
    left, size, _ = np.linalg.svd(signals - signals.mean(0), full_matrices=False)
    kept = size[:most] > 1e-6 * max(float(size[0]), 1e-12) if len(size) else []
    return (left * size)[:, :most][:, kept]


def amount_waves(amount: Float[np.ndarray, "t c"], hz: float) -> Float[np.ndarray, "t k"]:
    """Waves of columns that say how much moves (not negative); columns at rest fall out."""
    amount = binomial(np.asarray(amount, np.float64))
    amount, usual = _moving(amount)
    # The square root makes a slow motion as good a witness as a fast one.
    return _wave(np.sqrt(amount / usual + FLOOR), hz)


def signed_waves(signal: Float[np.ndarray, "t c"], hz: float) -> Float[np.ndarray, "t k"]:
    """Waves of columns that say how much moves which way; columns at rest fall out."""
    signal, usual = _moving(binomial(np.asarray(signal, np.float64)))
    return _wave(signal / usual, hz)


def _moving(signal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns that move, and their usual size."""
    if len(signal) < SHORTEST:
        return signal[:, :0], np.ones(0)
    usual = np.sqrt(np.mean(signal**2, axis=0))
    moves = np.ptp(signal, axis=0) > 1e-3 * usual
    return signal[:, moves], usual[moves]


def _wave(signal: np.ndarray, hz: float) -> np.ndarray:
    if not signal.size:
        return signal
    signal = signal - motion.smooth(signal, _odd(SLOW_SECONDS * hz))
    loud = np.sqrt(motion.smooth(signal**2, _odd(LOUD_SECONDS * hz)))
    return signal / (loud + QUIET * np.sqrt(np.mean(signal**2, axis=0)) + 1e-12)


def _odd(width: float) -> int:
    return max(5, round(width) // 2 * 2 + 1)
