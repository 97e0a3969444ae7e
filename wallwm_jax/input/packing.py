"""Packs variable-length events into fixed-length sequences.

An event takes latent frames, action steps and one slot; a sequence has a
capacity of each. Long events carry more action steps per latent frame than
short ones (their key frame costs no step), so a packer that simply takes the
largest event first fills its first sequences with steps and its last ones with
frames, and wastes the other of the two. `pack` therefore builds one sequence
at a time and prefers the event that keeps the resources used evenly:

    score(i) = spread over resources of (used + w_i) / d  -  blend * max(w_i)

with w_i the event's share of each capacity and d the mix that is still to be
packed. With one resource the spread is 0 and this is best-fit decreasing.
"""

import itertools

import numpy as np
from jaxtyping import Int

TIGHT = 0.85
"""A resource below this share of the scarcest one never binds: left out of the spread."""


def pack(
    lengths: Int[np.ndarray, "n"] | Int[np.ndarray, "n k"],
    capacity: int | tuple[int, ...],
    blend: float = 0.2,
) -> list[list[int]]:
    """Distributes all items over bins; deterministic, nothing lost or repeated.

    Items of equal size are taken in the order given, so shuffling the input
    changes who meets whom.

    Args:
      lengths: sizes of n items, in k resources when 2-D.
      capacity: of one bin; k numbers when `lengths` is 2-D.
      blend: weight of "large items first" against "resources used evenly".

    Returns:
      Bins of item indices; per bin and resource the sizes sum to at most the
      capacity.

    Raises:
      ValueError: an item alone exceeds the capacity, or shapes disagree.
    """
    sizes = (lengths[:, None] if lengths.ndim == 1 else lengths).astype(np.int64)
    room = np.atleast_1d(np.asarray(capacity, np.int64))
    _check(sizes, room)
    if len(sizes) == 0:
        return []
    types, kind = np.unique(sizes, axis=0, return_inverse=True)
    waiting = [np.flatnonzero(kind == t)[::-1].tolist() for t in range(len(types))]
    left = np.array([len(w) for w in waiting])
    bins = []
    while left.any():
        bins.append([waiting[t].pop() for t in _fill(types, left, room, blend)])
    return bins


def _check(sizes: Int[np.ndarray, "n k"], room: Int[np.ndarray, "k2"]) -> None:
    if sizes.shape[1] != len(room):
        raise ValueError(
            f"items have {sizes.shape[1]} sizes but capacity {tuple(room.tolist())} has {len(room)}"
        )
    bad = np.flatnonzero((sizes > room).any(1) | (sizes < 0).any(1))
    if bad.size:
        i = int(bad[0])
        raise ValueError(
            f"item {i} of size {tuple(sizes[i].tolist())} does not fit the capacity "
            f"{tuple(room.tolist())}; raise the capacity or cut longer events"
        )


def _fill(
    types: Int[np.ndarray, "m k"],
    left: Int[np.ndarray, "m"],
    room: Int[np.ndarray, "k"],
    blend: float,
) -> list[int]:
    """Types of one bin, in order of choice. Takes them out of `left` in place."""
    share = types / room
    largest = share.max(1)
    demand = left @ share
    demand = np.maximum(demand / demand.max(), 1e-12) if demand.any() else np.ones(len(room))
    tight = demand >= TIGHT
    used = np.zeros(len(room), np.int64)
    chosen = []
    while True:
        fits = (left > 0) & (used + types <= room).all(1)
        if not fits.any():
            return chosen
        # The first item is the largest: it is the hardest to place later.
        score = -largest
        if chosen:
            fill = ((used / room + share) / demand)[:, tight]
            score = fill.max(1) - fill.min(1) - blend * largest
        best = int(np.argmin(np.where(fits, score, np.inf)))
        left[best] -= 1
        used += types[best]
        chosen.append(best)


def epoch_plan(
    lengths: Int[np.ndarray, "n k"],
    capacity: tuple[int, ...],
    seed: int,
    epoch: int,
    window: int = 512,
) -> list[list[int]]:
    """Shuffles the items, packs them window by window, shuffles the bins.

    A window bounds the cost for large data; 512 events already pack as tightly
    as thousands. Windows of one epoch have equal sizes, up to one item.

    Raises:
      ValueError: as `pack`, or on a window below 1.
    """
    if window < 1:
        raise ValueError(f"packing window is {window}; give at least 1 event")
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    plan = []
    for part in np.array_split(order, -(-len(order) // window) or 1):
        plan += [[int(part[i]) for i in chosen] for chosen in pack(lengths[part], capacity)]
    # Bins come out hardest first; batches must not be sorted by event length.
    return [plan[i] for i in rng.permutation(len(plan))]


def action_capacity(
    frames: Int[np.ndarray, "n"],
    steps: Int[np.ndarray, "n"],
    frames_capacity: int,
    sample: int = 1024,
) -> int:
    """Action steps per sequence that waste least beside `frames_capacity`.

    Tries capacities from the data's mean ratio of steps to frames upwards and
    keeps the one with the best product of the two real-token fractions (the
    smallest of equals).

    Args:
      frames, steps: latent frames and action steps of each event.
      frames_capacity: F, latent frames per sequence.
      sample: at most this many events, evenly spaced, are packed per trial.

    Raises:
      ValueError: no events, or one has more frames than a sequence.
    """
    if len(frames) == 0:
        raise ValueError("action_capacity needs events to measure; the split is empty")
    longest = int(steps.max())
    keep = np.linspace(0, len(frames) - 1, min(sample, len(frames))).astype(int)
    sizes = np.stack([frames[keep], steps[keep]], axis=1)
    mean = frames_capacity * sizes[:, 1].sum() / sizes[:, 0].sum()
    trials = range(max(longest, int(mean)), max(longest, int(1.12 * mean) + 1) + 1)

    def product(actions: int) -> float:
        bins = len(pack(sizes, (frames_capacity, actions)))
        return sizes.sum(0).prod() / (bins * frames_capacity * bins * actions)

    return max(trials, key=product)


def packing_report(
    frames: Int[np.ndarray, "n"],
    steps: Int[np.ndarray, "n"],
    plan: list[list[int]],
    frames_capacity: int,
    actions_capacity: int,
    examples: int = 12,
) -> dict:
    """How full the sequences of a plan are.

    Returns:
      {"video_tokens_real", "action_tokens_real": fractions; "sequences",
      "events_per_sequence"; "example": the frame segments of a few sequences}.
      Every latent frame has the same number of tokens, so the fraction of real
      frames is the fraction of real video tokens.
    """
    used = np.array(list(itertools.chain.from_iterable(plan)), int)
    bins = max(len(plan), 1)

    def segments(chosen: list[int]) -> list[int]:
        ids = np.repeat(np.arange(1, len(chosen) + 1), frames[chosen]).tolist()
        return ids + [0] * (frames_capacity - len(ids))

    return {
        "video_tokens_real": float(frames[used].sum() / (bins * frames_capacity)),
        "action_tokens_real": float(steps[used].sum() / (bins * actions_capacity)),
        "sequences": len(plan),
        "events_per_sequence": len(used) / bins,
        "example": [segments(chosen) for chosen in plan[:examples]],
    }
