"""Small tools on one-dimensional signals that carving is written in."""

import numpy as np
from jaxtyping import Bool, Float


def smooth(path: Float[np.ndarray, "t *c"], width: int = 5) -> Float[np.ndarray, "t *c"]:
    """Centred moving average of odd `width`; the ends are held."""
    half = width // 2
    padded = np.pad(path, [(half, half)] + [(0, 0)] * (path.ndim - 1), mode="edge")
    return np.mean([padded[i : i + len(path)] for i in range(2 * half + 1)], axis=0)


def speed(
    path: Float[np.ndarray, "observations c"], hz: float, width: int = 3
) -> Float[np.ndarray, "steps"]:
    """Speed of every step, unit of the path per second, lightly smoothed."""
    return np.linalg.norm(np.diff(smooth(path, width), axis=0), axis=-1) * hz


def above(
    signal: Float[np.ndarray, "t"], high: float, low: float
) -> Bool[np.ndarray, "t"]:
    """Threshold with memory: true from `high` on until the signal falls below `low`.

    One threshold would flicker where the signal hovers around it, and every
    flicker would become an event.

        signal  0 3 5 3 3 1 3      high=4, low=2
        above   . . x x x . .
    """
    out = np.zeros(len(signal), bool)
    state = False
    for t, value in enumerate(signal):
        state = value >= (low if state else high)
        out[t] = state
    return out


def runs(flags: Bool[np.ndarray, "t"]) -> list[tuple[int, int]]:
    """Half-open ranges where `flags` is true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def close_gaps(flags: Bool[np.ndarray, "t"], gap: int) -> Bool[np.ndarray, "t"]:
    """Joins runs that are at most `gap` apart (contacts bounce)."""
    out = flags.copy()
    found = runs(flags)
    for (_, end), (start, _) in zip(found, found[1:], strict=False):
        if start - end <= gap:
            out[end:start] = True
    return out


def last_entry(inside: Bool[np.ndarray, "t"]) -> int:
    """First index of the run of true that reaches the end; len(inside) if none does.

    "From here on for good": a region that is entered, left and entered again
    counts from the last time.
    """
    outside = np.flatnonzero(~inside)
    return int(outside[-1]) + 1 if len(outside) else 0
