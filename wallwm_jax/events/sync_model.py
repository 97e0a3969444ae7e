"""How a robot's state answers its commands, learnt from all episodes of a data set.

A correlation forgets how MUCH the state moves for a command, and an arm that
glides to its goal slows down exponentially: shifted in time, an exponential is
the same one scaled, so it fits itself at any lag. A robot's gain does not change
from episode to episode, so it is learnt and then held. For each commanded column
c and the state column h that takes its values, with v(t) = h(t+1) - h(t),

    v(t) = sum_j b_j [c(t+1-L-j) - h(t)] + a_1 v(t-1) + a_2 v(t-2) + m + e(t)

(an ARX model, Ljung 1999, with j = -2..2 around the usual lag L, which takes in
fractions of a step). A push or a stop is no noise of a motor: e is Student's t,
so that few large errors do not decide. m is the data set's plus a little of the
episode's own, because encoders are zeroed anew and loads differ.

The offset of an episode is the shift of its commands at which the model expects
its state best. Its certainty is a likelihood ratio, in nats, over those steps
that both shifts have.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import SupportsFloat

import numpy as np
from jaxtyping import Bool, Float, Int

FARTHEST = 8
"""Largest offset, steps: what is farther off is no slip of a clock."""

OFFSETS = np.arange(-FARTHEST, FARTHEST + 1)
AROUND = np.arange(-2, 3)  # commands that count, steps about the usual lag
MEMORY = 2  # steps of its own motion that a limb carries on: a mass on a spring has two
TAILS = 4.0
"""Degrees of freedom of the errors: a few in a hundred are pushes, not noise."""

SHORTEST = 8  # steps in common below which two offsets are not compared
REWEIGHTED = 4  # rounds of reweighted least squares; the scale settles in three
RIDGE = 1e-6  # of a regressor's power
SMALLEST = 0.02
"""Least error, share of the motion: a state copied from its commands has none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traces:
    """What one episode commanded and reached.

    Attributes:
      commands: name of a column -> its values, in force BEFORE each step.
      state: the measured state of the same observations.
      partners: name of a column -> the state column that takes its values.
    """

    commands: Mapping[str, Float[np.ndarray, "observations"]]
    state: Float[np.ndarray, "observations s"]
    partners: Mapping[str, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """How one state column follows its command; see the module's text.

    Attributes:
      name, partner: of the commanded column, and its state column.
      weights: b of each tap, a of each remembered step, m.
      scale: of the errors, in the unit of the column.
      wander: how far m differs between episodes.
      alone: a and m where commands say nothing, and `alone_scale` of its errors.
    """

    name: str
    partner: int
    weights: tuple[float, ...]
    scale: float
    wander: float
    alone: tuple[float, ...]
    alone_scale: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Follower:
    """How the state of a data set follows its commands.

    Attributes:
      behind: usual lag of the state, whole steps.
      answers: of the columns that have one.
    """

    behind: int
    answers: tuple[Answer, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """By how much the commands of an episode are off.

    Attributes:
      offset: steps by which they are late (early when negative).
      margin: nats above every other offset, the usual one being `prior` likelier.
      contrast: nats above commands that say nothing about the state.
      motion: nats that one step more or less is expected to cost: what the
        commands of this episode can tell, whatever they do tell.
    """

    offset: int
    margin: float
    contrast: float
    motion: float


def learn(episodes: Sequence[Traces], offsets: Sequence[int], behind: int) -> Follower | None:
    """The model of episodes whose commands are late by `offsets`; None without a column."""
    found = []
    for name, partner in _pairs(episodes).items():
        tables = [
            _rows(e.commands[name], e.state[:, partner], behind, off)
            for e, off in zip(episodes, offsets, strict=True)
            if name in e.commands
        ]
        x, y = np.concatenate([t[0] for t in tables]), np.concatenate([t[1] for t in tables])
        # Fewer steps than twice the unknowns say nothing.
        if len(y) < 2 * x.shape[1] or not np.ptp(y):
            continue
        weights, scale = _robust(x, y)
        alone, alone_scale = _robust(x[:, len(AROUND) :], y)
        own = [np.mean(b - a @ weights) for a, b in tables if len(b)]
        wander = np.sqrt(np.mean(np.square(own)))
        wander = np.sqrt(np.mean(np.square(own)))
        answer = Answer(
            name=name, partner=partner, weights=tuple(map(_short, weights)), scale=_short(scale),
            wander=_short(wander), alone=tuple(map(_short, alone)),
            alone_scale=_short(alone_scale),
        )  # fmt: skip
        found.append(answer)
    return Follower(behind=behind, answers=tuple(found)) if found else None


def judge(follower: Follower, episode: Traces, prior: float) -> Fit | None:
    """Which offset the commands of an episode have; None when it has no column of the model.

    Args:
      prior: nats by which no offset is likelier beforehand.
    """
    parts = [
        _column(answer, episode, follower.behind)
        for answer in follower.answers
        if answer.name in episode.commands and answer.partner < episode.state.shape[1]
    ]
    if not parts:
        return None
    nats, silent, valid = sum(p[0] for p in parts), sum(p[1] for p in parts), parts[0][2]
    better = _duels(nats, valid)
    usual = (OFFSETS == 0) * prior
    better = better + usual[:, None] - usual[None]
    np.fill_diagonal(better, np.inf)
    best = int(np.argmax(better.min(1)))
    return Fit(
        offset=int(OFFSETS[best]),
        margin=float(better[best].min()),
        contrast=float((nats[best] - silent)[valid[best]].sum()),
        motion=sum(p[3] for p in parts),
    )


def _pairs(episodes: Sequence[Traces]) -> dict[str, int]:
    """Commanded column -> the state column that follows it in most episodes that have it."""
    votes: dict[str, list[int]] = {}
    for episode in episodes:
        for name in episode.commands:
            votes.setdefault(name, []).append(episode.partners.get(name, -1))
    common = {name: max(sorted(set(v)), key=v.count) for name, v in votes.items()}
    return {name: partner for name, partner in common.items() if partner >= 0}


def _rows(
    command: np.ndarray, reached: np.ndarray, behind: int, offset: int
) -> tuple[np.ndarray, np.ndarray]:
    """Regressors [n, taps + memory + 1] and velocities [n] of the steps that have all of them."""
    table, moved, valid = _tables(command, reached, behind, np.array([offset]))
    return table[0][valid[0]], moved[valid[0]]


def _tables(
    command: Float[np.ndarray, "observations"],
    reached: Float[np.ndarray, "observations"],
    behind: int,
    offsets: Int[np.ndarray, "k"],
) -> tuple[Float[np.ndarray, "k steps p"], Float[np.ndarray, "steps"], Bool[np.ndarray, "k steps"]]:
    """Regressors, velocities and which steps have them, for each offset of the commands."""
    reached = np.asarray(reached, np.float64)
    moved = np.diff(reached)
    step = np.arange(len(moved))
    taken = step[:, None] + 1 - behind - AROUND
    taken = taken[None] + offsets[:, None, None]
    valid = ((taken >= 0) & (taken <= len(moved))).all(-1) & (step >= MEMORY)
    error = command[np.clip(taken, 0, len(moved))] - reached[:-1, None]
    before = [np.roll(moved, k) for k in range(1, MEMORY + 1)]
    own = np.stack([*before, np.ones_like(moved)], -1)
    own = np.broadcast_to(own, (len(offsets), *own.shape))
    return np.concatenate([error, own], -1), moved, valid


def _robust(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights and scale of y = x w + e, e of Student's t (expectation maximisation)."""
    smallest = SMALLEST * y.std()
    share = np.ones(len(y))
    for _ in range(REWEIGHTED):
        gram = (x * share[:, None]).T @ x
        # Columns that never move have no power; their weight is then zero.
        gram += np.diag(RIDGE * np.diag(gram) + 1e-12 * np.trace(gram))
        weights = np.linalg.solve(gram, (x * share[:, None]).T @ y)
        error = y - x @ weights
        scale = max(float(np.sqrt(np.mean(share * error**2))), smallest)
        share = (TAILS + 1) / (TAILS + (error / scale) ** 2)
    return weights, scale


def _cost(error: np.ndarray, scale: float) -> np.ndarray:
    """Nats that each error costs, above none."""
    return (TAILS + 1) / 2 * np.log1p((error / scale) ** 2 / TAILS)


def _column(
    answer: Answer, episode: Traces, behind: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Nats [k, steps] of each offset, nats [steps] without commands, valid [k, steps], motion."""
    weights, alone = np.array(answer.weights), np.array(answer.alone)
    command = np.asarray(episode.commands[answer.name], np.float64)
    table, moved, valid = _tables(command, episode.state[:, answer.partner], behind, OFFSETS)
    error = moved - table @ weights
    count = valid.sum(1)
    mean = np.where(valid, error, 0).sum(1) / np.maximum(count, 1)
    # The episode's own m: as much of its mean error as the others' scatter allows.
    shrink = answer.wander**2 / (answer.wander**2 + answer.scale**2 / np.maximum(count, 1))
    own = shrink * mean
    unusual = 0.5 * (own / max(answer.wander, 1e-12)) ** 2 / np.maximum(count, 1)
    nats = -_cost(error - own[:, None], answer.scale) - unusual[:, None] - np.log(answer.scale)
    silent = -_cost(moved - table[0, :, len(AROUND) :] @ alone, answer.alone_scale)
    silent = silent - np.log(answer.alone_scale)
    changed = np.diff(table[FARTHEST : FARTHEST + 2, :, : len(AROUND)], axis=0)[0]
    told = changed[valid[FARTHEST]] @ weights[: len(AROUND)]
    return nats, silent, valid, float(_cost(told, answer.scale).sum())


def _duels(nats: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """[k, k]: nats of each offset above each other one, over the steps that both have."""
    known = valid.astype(np.float64)
    of = np.where(valid, nats, 0) @ known.T
    # Too few steps in common: neither wins.
    return np.where(known @ known.T >= SHORTEST, of - of.T, 0.0)


def _short(value: SupportsFloat) -> float:
    """Six digits: more would differ between machines, and the numbers are stored."""
    return float(f"{value:.6g}")
