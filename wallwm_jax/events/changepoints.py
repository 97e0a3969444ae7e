"""Where a path changes its course: the best fit by straight legs, and no more than it needs.

A leg moves at constant velocity, so stops, starts, corners and changes of pace
are all ends of legs. Of all ways to cut [0, T) the one with the least

    sum of squared distances from the legs / tolerance^2  +  patience * legs

is found exactly, from short to long (Jackson et al. 2005): the best cut up to
step t ends with a leg that began at some s, after the best cut up to s.
"""

import numpy as np
from jaxtyping import Float

LONGEST = 2000  # samples of one leg; bounds the work of hour-long episodes


def leg_starts(
    path: Float[np.ndarray, "samples c"],
    *,
    tolerance: float,
    patience: float,
    min_length: int = 2,
) -> list[int]:
    """First samples of the legs after the first one.

    Args:
      path: any quantities of one unit.
      tolerance: distance from a leg that is no change, same unit.
      patience: samples that must be off by the tolerance to be worth a leg.
      min_length: samples of the shortest leg.
    """
    count = len(path)
    if count < 2 * min_length:
        return []
    sums = _sums(np.asarray(path, np.float64) / tolerance)
    best = np.full(count + 1, np.inf)
    best[0], came = -patience, np.zeros(count + 1, np.int64)
    for end in range(min_length, count + 1):
        starts = np.arange(max(end - LONGEST, 0), end - min_length + 1)
        cost = best[starts] + _leg_cost(sums, starts, end) + patience
        came[end] = starts[np.argmin(cost)]
        best[end] = cost.min()
    found, at = [], int(came[count])
    while at > 0:
        found.append(at)
        at = int(came[at])
    return found[::-1]


def _sums(path: np.ndarray) -> tuple[np.ndarray, ...]:
    """Running sums of y, t y and y^2, each starting at 0."""
    # Centred and counted from the middle: fewer digits are lost in the squares.
    path = path - path.mean(0)
    time = np.arange(len(path)) - len(path) / 2
    rows = (path, time[:, None] * path, (path**2).sum(-1))
    return tuple(np.concatenate([np.zeros_like(r[:1]), np.cumsum(r, 0)]) for r in rows)


def _leg_cost(sums: tuple[np.ndarray, ...], starts: np.ndarray, end: int) -> np.ndarray:
    """Squared distance of samples [start, end) from their straight line, per start."""
    y, ty, yy = (s[end] - s[starts] for s in sums)
    length = (end - starts).astype(np.float64)
    middle = (starts + end - 1) / 2 - (len(sums[0]) - 1) / 2
    spread = length * (length**2 - 1) / 12
    slope = ty - middle[:, None] * y
    explained = (y**2).sum(-1) / length
    explained += np.where(length > 1, (slope**2).sum(-1) / np.maximum(spread, 1e-12), 0.0)
    return np.maximum(yy - explained, 0.0)


def turns(
    path: Float[np.ndarray, "samples c"], starts: list[int], *, least: float, slow: float
) -> list[int]:
    """Those leg starts at which the velocity changes for good, weakest dropped first.

    A bow is many legs but no change of course: neighbours differ by little.

    Args:
      starts: of legs, as `leg_starts` finds them.
      least: change of velocity that counts, as a share of the faster of the two legs.
      slow: legs slower than this share of the mean speed count as that fast, so
        that noise at rest is no change.
    """
    kept = list(starts)
    while kept:
        edges = np.array([0, *kept, len(path) - 1])
        length = np.maximum(np.diff(edges), 1)
        velocity = np.diff(path[edges], axis=0) / length[:, None]
        speed = np.linalg.norm(velocity, axis=-1)
        speed = np.maximum(speed, max(slow * np.average(speed, weights=length), 1e-12))
        change = np.linalg.norm(np.diff(velocity, axis=0), axis=-1)
        change /= np.maximum(speed[:-1], speed[1:])
        weakest = int(np.argmin(change))
        if change[weakest] >= least:
            break
        del kept[weakest]
    return kept


def onsets(path: Float[np.ndarray, "samples c"], starts: list[int], *, leave: float) -> list[int]:
    """Moves each start of a leg that is faster than the one before to its first motion.

    Two straight legs that are fitted to a gentle start meet in its middle, too late.
    The motion begins where the path leaves the line of the slower leg for good; that
    line is drawn through the leg's first two thirds, before any start. A start lies as
    much before its middle as after it, so it cannot begin earlier than by half of the
    faster leg: what leaves the line before that is a bow.

    Args:
      starts: of legs, as `leg_starts` finds them.
      leave: distance from the line that is no noise, unit of the path.

    Returns:
      As many, in the same order, none later than it was.
    """
    edges = [0, *starts, len(path)]
    moved = []
    for a, start, b in zip(edges, edges[1:], edges[2:], strict=False):
        before = np.linalg.norm(path[start - 1] - path[a]) / (start - a)
        after = np.linalg.norm(path[b - 1] - path[start]) / (b - start)
        known = max(2 * (start - a) // 3, 2)
        if after <= before or known >= start - a:
            moved.append(start)
            continue
        slope, height = np.polyfit(np.arange(known), path[a : a + known], 1)
        line = np.arange(known, start - a)[:, None] * slope + height
        near = np.linalg.norm(path[a + known : start] - line, axis=-1) <= leave
        left = a + known + (int(np.flatnonzero(near)[-1]) + 1 if near.any() else 0)
        moved.append(max(left, start - (b - start) // 2))
    return moved
