"""Which columns of commands and state belong to which limb, and how one follows the other."""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from wallwm_jax.episodes import action_space
from wallwm_jax.episodes.record import Episode
from wallwm_jax.events import sync_motion
from wallwm_jax.events.sync_evidence import (
    SHORTEST,
    Comparison,
    correlations,
    evidence,
    likeness,
)
from wallwm_jax.events.sync_model import Follower, Traces

FOLLOWS = 0.5
"""Correlation of velocities, and share of the variance, with which a state column
follows a command. The right column has 0.7 and more on the sets tried."""

ORDERS = 3  # derivatives that are compared: velocity, acceleration, jerk
LIMB = 7  # columns of an unnamed limb

SMALL_PARTS = re.compile(r"hand|finger|thumb|pinky|gripper|claw", re.IGNORECASE)
SIDES = (re.compile(r"left", re.IGNORECASE), re.compile(r"right", re.IGNORECASE))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limb:
    """The commanded columns of one limb, the values in force BEFORE each step."""

    name: str
    columns: tuple[str, ...]
    command: Float[np.ndarray, "observations c"]


def limbs(episode: Episode) -> list[Limb]:
    """The limbs whose commands are known and move: end effectors, else groups of joints.

    Hands are left out where there are arms: their few pixels say little, and
    they often move when the arm does not.
    """
    found = [
        Limb(
            name=f"arm {arm}",
            columns=tuple(f"arm {arm} {axis}" for axis in "xyz"),
            command=np.asarray(episode.target_position[:, arm], np.float64),
        )
        for arm in range(episode.arms)
        if episode.action_mask[arm * action_space.ARM_DIMS]
    ]
    if not found and episode.native is not None:
        values = np.asarray(episode.native.values, np.float64)
        # Row t of the native numbers is the command OF step t: in force after it.
        held = np.concatenate([values[:1], values])
        groups = _groups(episode.native.names, np.ptp(held, axis=0) > 0)
        names = episode.native.names
        found = [
            Limb(name=name, columns=tuple(f"{i} {names[i]}" for i in taken), command=held[:, taken])
            for name, taken in groups.items()
        ]
    return [limb for limb in found if np.ptp(limb.command, axis=0).any()]


def _groups(names: Sequence[str], moves: np.ndarray) -> dict[str, list[int]]:
    """Columns that move together: by side where the names tell it, else neighbours."""
    columns = [i for i in range(len(names)) if moves[i]]
    columns = [i for i in columns if not SMALL_PARTS.search(names[i])] or columns
    groups: dict[str, list[int]] = {}
    for i in columns:
        side = [s.pattern for s in SIDES if s.search(names[i])]
        groups.setdefault(side[0] if side else "", []).append(i)
    rest = groups.pop("", [])
    for first in range(0, len(rest), LIMB):
        groups[f"from {names[rest[first]]}"] = rest[first : first + LIMB]
    return groups


def follow(
    episode: Episode, limbs: Sequence[Limb], window: int
) -> tuple[Comparison | None, Traces]:
    """How the state follows the commands.

    Returns:
      (evidence for each lag of the state behind the commands, or None when no
      state column takes the values of a commanded one; the columns compared).
    """
    total, partners = np.zeros(2 * window + 1), {}
    state = np.asarray(episode.state, np.float64)
    moved = sync_motion.velocity(state)
    for limb in limbs if state.shape[1] else ():
        asked = sync_motion.velocity(sync_motion.response(limb.command))
        partner = _partners(limb.command, state, asked, moved, window)
        found = np.flatnonzero(partner >= 0)
        partners |= {limb.columns[i]: int(partner[i]) for i in found}
        if len(found):
            reached = state[:, partner[found]]
            total += _sharp(asked[:, found], moved[:, partner[found]], window)
            total += _near(sync_motion.response(limb.command)[:, found], reached, window)
    commands = {n: c for limb in limbs for n, c in zip(limb.columns, limb.command.T, strict=True)}
    traces = Traces(commands=commands, state=episode.state, partners=partners)
    return (Comparison(curve=tuple(total.tolist())) if partners else None), traces


def body(traces: Traces, follower: Follower | None) -> Float[np.ndarray, "observations c"]:
    """The path that pictures are compared with: of all limbs, because they show all at once.

    Compared one by one, a limb that repeats the other's motion later is taken for
    that one, late; and of one episode alone, it depends on the very shift that is
    looked for which columns seem to follow.

    Args:
      follower: of the data set, which knows what columns are reached.

    Returns:
      The reached columns; the commanded ones where no state follows.
    """
    pairs = {a.name: a.partner for a in follower.answers} if follower else traces.partners
    reached = {pairs[name] for name in traces.commands if name in pairs}
    reached = [column for column in sorted(reached) if column < traces.state.shape[1]]
    if traces.partners and reached:
        return np.asarray(traces.state[:, reached], np.float64)
    return np.stack([*traces.commands.values()], 1)


def _partners(
    command: np.ndarray, state: np.ndarray, asked: np.ndarray, moved: np.ndarray, window: int
) -> np.ndarray:
    """The state column that takes the values of each commanded one; -1 where none does."""
    r = np.maximum(correlations(asked, moved, window), 0)
    best = evidence(asked, moved, r).argmax(0)
    alike = np.take_along_axis(r, best[None], 0)[0] >= FOLLOWS
    # A state may also hold the last command or the error left: they move with the
    # command, but only the reached value takes its values.
    level = np.where(alike, likeness(command, state, best - window), -np.inf)
    partner = level.argmax(-1)
    return np.where(level.max(-1) >= FOLLOWS, partner, -1)


def _sharp(asked: np.ndarray, moved: np.ndarray, window: int) -> np.ndarray:
    """Evidence for each lag of paired columns, from velocity and its next two derivatives.

    An arm that glides to its goal slows down exponentially, and an exponential
    fits itself at any lag. Where pace changes, derivatives are sharp. The three
    are made of the same samples, so they share one vote.
    """
    total = np.zeros(2 * window + 1)
    for _ in range(ORDERS):
        for a, b in zip(asked.T, moved.T, strict=True):
            x, y = a[:, None], b[:, None]
            r = np.maximum(correlations(x, y, window), 0)
            total += evidence(x, y, r)[:, 0, 0] / ORDERS
        asked, moved = np.diff(asked, axis=0), np.diff(moved, axis=0)
    return total


def _near(asked: np.ndarray, reached: np.ndarray, window: int) -> np.ndarray:
    """Evidence for each lag from how far the reached values are from the asked ones.

    Absolute deviations from their median, because loads and stops keep a limb
    from its command. Neighbouring errors are alike: two steps share one vote.
    """
    steps, size = len(asked), np.maximum(asked.std(0), 1e-9)
    off = np.full(2 * window + 1, np.nan)
    for row, lag in enumerate(range(-window, window + 1)):
        first, last = max(0, -lag), min(steps, steps - lag)
        if last - first >= max(SHORTEST, steps // 2):
            error = (reached[first + lag : last + lag] - asked[first:last]) / size
            off[row] = np.abs(error - np.median(error, axis=0)).mean()
    # A recording that is copied from its commands has no error at all.
    off = np.maximum(off, 1e-3 * np.nanmax(off, initial=1e-9))
    gain = steps / 2 * np.log(np.nanmedian(off) / off)
    return np.maximum(np.nan_to_num(gain), 0)
