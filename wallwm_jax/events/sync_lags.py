"""What a measurement of lags says, and the lags that a data set has by nature."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from wallwm_jax.events import sync_model
from wallwm_jax.events.sync_evidence import Comparison
from wallwm_jax.events.sync_model import Fit, Follower, Traces
from wallwm_jax.events.sync_motion import PictureMotion

CLEAR_NATS = {"pictures": 2.5, "commands": 12.0}
"""By which the best lag must beat all but its neighbours. State and commands are
free of noise, but an arm that glides to its goal fits itself at several lags."""

KEPT_NATS = 5.5  # of contrast that an unchanged episode needs

SHIFTED_NATS = 15.0
"""Contrast that a change needs. Pictures of another episode have 9 now and then."""

PRIOR_NATS = 3.0  # log 20: one episode in twenty is off; an error must be likelier than that

SURE_NATS = 7.0
"""Margin of an offset under the model: the next best one is a thousand times less
likely. Data sets have thousands of episodes, and errors that last count double."""

UNFOLLOWED_NATS = 9.0  # contrast of commands and pictures that have only each other
TOLD_NATS = 9.0
"""Nats that commands must tell about the state: of another episode's few have 3."""

MOTION_NATS = 10.0
"""Enough motion: what one step of offset must be expected to cost, so that the
likelihood can outweigh `PRIOR_NATS` and leave `SURE_NATS`. It is a property of
the commands and the learnt robot alone, known before anything is compared."""

ENOUGH = 3  # sure episodes that a task's own natural lag needs
TRUSTED = 2  # steps: less is not believed of a correlation, only of the model
FOLDS = 5  # parts of a data set, each judged by a model of the others
ROUNDS = 6  # of learning and judging; two or three are the rule


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vote:
    """What one view says: pictures are behind by `lag`, `nats` sure."""

    view: str
    lag: int
    nats: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyncResult:
    """What `measure` found.

    Attributes:
      episode_id, task: of the episode.
      seen: pictures behind the state (behind the actions when `followed` is None).
      followed: state behind the actions; None without a state that follows them.
      votes: of the views, for the record.
      motion: of the pictures, by view.
      traces: the columns that were compared; None when none was.
      idle: why nothing could be compared; "" when something was.
    """

    episode_id: str
    task: str
    seen: Comparison
    followed: Comparison | None
    votes: tuple[Vote, ...]
    motion: Mapping[str, PictureMotion] = dataclasses.field(default_factory=dict)
    traces: Traces | None = None
    idle: str = ""

    @property
    def lag(self) -> float:
        """Steps by which the pictures are behind the actions."""
        return self.seen.place + (self.followed.place if self.followed else 0.0)

    @property
    def trouble(self) -> str:
        """Why the lags cannot be trusted; "" when they can."""
        if self.idle:
            return self.idle
        # Without a state between them, commands and pictures have only each other.
        needed = KEPT_NATS if self.followed else UNFOLLOWED_NATS
        for what, found in self.parts().items():
            if said := found.trouble(needed, CLEAR_NATS[what]):
                return f"{what}: {said}"
        return ""

    def parts(self) -> dict[str, Comparison]:
        """The comparisons that were made, under the names they have in reasons."""
        seen = {"pictures": self.seen}
        return seen | ({"commands": self.followed} if self.followed else {})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Usual:
    """A lag that most episodes have.

    Attributes:
      place: steps, with a fraction.
      spread: steps within which four episodes of five are.
      nats: contrast of half of the episodes, per step.
    """

    place: float
    spread: float
    nats: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Natural:
    """The lags of a data set: pictures behind the state, state behind the actions.

    Attributes:
      seen: pictures behind the state (behind the actions when `followed` is None).
      followed: whole steps; None when in most episodes no state follows the actions.
      late: steps by which the actions of all episodes are late.
      follower: how the state follows actions that are late by `late`.
      episodes: how many sure ones they were taken from.
    """

    seen: Usual
    followed: int | None = None
    late: int = 0
    follower: Follower | None = None
    episodes: int = 0


def natural_lags(results: Iterable[SyncResult], whole: Natural | None = None) -> Natural | None:
    """The lags of most sure episodes; None when there is none, or no majority.

    The state cannot be ahead of its command: a set in which it is has shifted
    actions throughout, and they are all moved until its lag is 0.

    Args:
      whole: of a set that these are part of. Its pictures' lag is taken where
        fewer than `ENOUGH` of these are sure.
    """
    results = list(results)
    sure = [r for r in results if not r.trouble]
    through = 2 * sum(r.followed is not None for r in sure) >= len(sure)
    alike = [r for r in sure if (r.followed is not None) == through]
    if whole is not None and len(alike) < ENOUGH:
        seen = whole.seen
    elif alike:
        seen = _usual(alike)
    else:
        return None
    if not through:
        return Natural(seen=seen, episodes=len(alike))
    offsets, behind = _agree([r for r in results if r.followed])
    usual = [r for r, offset in offsets if offset == 0]
    if 2 * len(usual) <= len(offsets):
        return None
    follower = sync_model.learn(
        [r.traces for r, _ in offsets], [offset for _, offset in offsets], behind
    )
    place = float(np.median([r.followed.place for r in usual]))
    return Natural(
        seen=seen,
        followed=max(0, round(place)),
        late=max(0, -round(place)),
        follower=follower,
        episodes=len(usual),
    )


def _agree(results: Sequence[SyncResult]) -> tuple[list[tuple[SyncResult, int]], int]:
    """Which offset the commands of each episode have against those of most.

    Begins with the lags of correlation and judges every episode by a model of
    the others, until they stay: none is compared with what it taught itself.

    Returns:
      (the episodes with the steps by which their commands are late, usual lag).
    """
    sure = {
        i: r.followed.place
        for i, r in enumerate(results)
        if not r.followed.trouble(KEPT_NATS, CLEAR_NATS["commands"])
    }
    if not sure:
        return [], 0
    middle = float(np.median(list(sure.values())))
    behind = round(middle)
    # A load or a glide shifts a correlation by a step or so; a doubtful one says nothing.
    offsets = {i: round(middle - sure.get(i, middle)) for i in range(len(results))}
    offsets = {i: offset if abs(offset) >= TRUSTED else 0 for i, offset in offsets.items()}
    for _ in range(ROUNDS):
        judged = {}
        for fold in range(min(FOLDS, len(results))):
            others = {i: offset for i, offset in offsets.items() if i % FOLDS != fold}
            model = sync_model.learn(
                [results[i].traces for i in others], list(others.values()), behind
            )
            for i in range(fold, len(results), FOLDS):
                fit = model and sync_model.judge(model, results[i].traces, PRIOR_NATS)
                if fit and not doubt(fit):
                    judged[i] = fit.offset
        # A doubtful one stays: the errors' long tails bear a few that are wrong, but
        # a small set without its only noisy episode does not know the robot.
        judged = offsets | judged
        usual = collections.Counter(sorted(judged.values(), key=abs)).most_common(1)[0][0]
        judged = {i: offset - usual for i, offset in judged.items()}
        if judged == offsets:
            break
        offsets, behind = judged, behind - usual
    return [(results[i], offset) for i, offset in offsets.items()], behind


def doubt(fit: Fit) -> str:
    """Why the offset of an episode's commands cannot be trusted; "" when it can."""
    if abs(fit.offset) >= sync_model.FARTHEST:
        return f"off by {fit.offset:+d} or farther, the edge of the window"
    if fit.contrast < TOLD_NATS:
        return f"they tell {fit.contrast:.1f} nats of {TOLD_NATS:g} about the state"
    if fit.motion < MOTION_NATS:
        return f"too little motion, a step is worth {fit.motion:.1f} nats of {MOTION_NATS:g}"
    if fit.margin < SURE_NATS:
        return f"split, {fit.margin:.1f} nats of {SURE_NATS:g} between two offsets"
    return ""


def natural_by_task(results: Iterable[SyncResult]) -> dict[str, Natural]:
    """`natural_lags` of each task: an arm that pulls a door answers unlike a free one.

    Tasks of fewer than `ENOUGH` sure episodes have the lags of the whole set.
    """
    results = list(results)
    whole = natural_lags(results)
    tasks: dict[str, list[SyncResult]] = {}
    for result in results:
        tasks.setdefault(result.task, []).append(result)
    own = {task: natural_lags(group, whole) for task, group in tasks.items()}
    chosen = {t: n if n is not None and n.episodes >= ENOUGH else whole for t, n in own.items()}
    return {task: natural for task, natural in chosen.items() if natural is not None}


def _usual(results: Sequence[SyncResult]) -> Usual:
    """Of the pictures. Four of five, because one in five may be a slip."""
    places = np.array([r.seen.place for r in results])
    median = float(np.median(places))
    return Usual(
        place=median,
        spread=float(np.quantile(np.abs(places - median), 0.8)),
        nats=float(np.median([r.seen.contrast / len(r.traces.state) for r in results])),
    )
