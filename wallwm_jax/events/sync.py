"""Synchronise: do pictures, measured state and actions of an episode show the same instant?

An episode is recorded by several clocks. Method section 6 compares visual
motion with action motion and shifts the actions. Here the comparison goes
through the measured state, because a controller smooths a command and pictures
show what was reached, not what was asked for:

    action --followed--> state --seen--> pictures        lag = followed + seen

`followed` pairs each commanded column with the state column that takes its
values. How a robot's state answers its commands is learnt from all episodes of
the data set (`sync_model`), and an episode's offset is the one at which that
model expects its state best. `seen` compares how much and which way the robot
moves with how much and which way the picture changes, stretch by stretch; every
view votes with its evidence. Where no state column takes the commanded values,
the actions are compared with the pictures directly.

**What counts as an error.** A lag is none: controllers take their time and
cameras are late, at deployment as in the record, and a policy must meet both
alike. An error is what differs from the *natural* lags of the data set, those
that most of its sure episodes have (`natural_lags`). Only the difference is
shifted, only on strong and undivided evidence. Split offsets, commands that tell
nothing of the state, too little motion (`sync_lags.MOTION_NATS`) and pictures
that speak for no lag or another one quarantine the episode. A camera is not as
sharp as an encoder: pictures need only not prefer another lag than the usual,
and what only they tell is moved only where every view and both halves tell it.
"""

import itertools
from collections.abc import Mapping

import numpy as np

from wallwm_jax.episodes.record import Episode
from wallwm_jax.events import decision, sync_lags, sync_limbs, sync_model, sync_motion
from wallwm_jax.events.decision import Decision
from wallwm_jax.events.retake import retake
from wallwm_jax.events.sync_evidence import Comparison, correlations, evidence
from wallwm_jax.events.sync_lags import (
    KEPT_NATS,
    PRIOR_NATS,
    SHIFTED_NATS,
    Natural,
    SyncResult,
    Usual,
    Vote,
    natural_by_task,
    natural_lags,
)

WINDOW = 12
"""Largest lag searched, steps either way, of each of the two comparisons."""

USUAL_SHARE = 0.4
"""Of the evidence per step that pictures usually give: those of another episode give less."""

AGAINST_NATS = 2.0
"""By which pictures must prefer another lag to speak against the usual one."""

SHIFTED_CLEAR = 5.0  # nats by which a change of the pictures beats all lags but its neighbours
BETWEEN = 0.3
"""Steps: farther from a whole step, or where lags scatter more, a shift is a guess."""

LATENCY_SECONDS = 0.25  # a controller or a camera is late by up to this
SHORTEST = 24  # observations

STRETCH = 200
"""Steps that are compared at once, about: enough that few are lost where two meet."""

AXES, DRIFTS = 5, 6  # independent motions of a body and of a picture
QUARTER, WHOLE, DIRECTION = 1 / 3, 2 / 3, 0.2
"""Weights of the votes. Quarters of a picture see much of the same noise, and
the 30 pairs of directions are far from independent: each kind counts about
like two independent votes."""


def measure(
    episode: Episode,
    *,
    window: int = WINDOW,
    motion: Mapping[str, sync_motion.PictureMotion] | None = None,
    natural: Natural | None = None,
) -> SyncResult:
    """Compares actions, state and pictures of one episode; changes nothing.

    Args:
      window: largest lag of each comparison, steps.
      motion: view -> `sync_motion.picture_motion`, where it is known already.
      natural: of the data set, where it is known already: which columns of the
        state are compared with the pictures must not depend on the shift.
    """
    limbs = sync_limbs.limbs(episode)
    if idle := _nothing(episode, limbs):
        nothing = Comparison(curve=(0.0,) * (2 * window + 1))
        return SyncResult(
            episode_id=episode.episode_id, task=episode.task, seen=nothing, followed=None,
            votes=(), idle=idle,
        )  # fmt: skip
    if motion is None:
        motion = {v: sync_motion.picture_motion(film) for v, film in episode.frames.items()}
    followed, traces = sync_limbs.follow(episode, limbs, window)
    path = sync_limbs.body(traces, natural and natural.follower)
    views = _views(path, motion, episode.control_hz, window)
    votes = [
        Vote(view=view, lag=one.lag, nats=one.contrast)
        for view, one in views.items()
        if any(one.curve)
    ]
    return SyncResult(
        episode_id=episode.episode_id,
        task=episode.task,
        seen=_sum(views, window),
        followed=followed,
        votes=tuple(votes),
        motion=motion,
        traces=traces,
        idle="" if votes else "too little motion in the pictures",
    )


def _nothing(episode: Episode, limbs: list) -> str:
    if episode.steps + 1 < SHORTEST:
        return f"too short, {episode.steps + 1} observations of {SHORTEST}"
    if not episode.frames:
        return "no pictures"
    return "" if limbs else "too little motion in the commands"


def _views(
    path: np.ndarray, motion: Mapping[str, sync_motion.PictureMotion], hz: float, window: int
) -> dict[str, Comparison]:
    return {view: _stretches(path, moved, hz, window) for view, moved in motion.items()}


def _sum(views: Mapping[str, Comparison], window: int) -> Comparison:
    curves = [one.curve for one in views.values()]
    return Comparison(curve=tuple(np.sum([np.zeros(2 * window + 1), *curves], 0).tolist()))


def _stretches(
    path: np.ndarray, moved: sync_motion.PictureMotion, hz: float, window: int
) -> Comparison:
    """What one view says of a path.

    Stretch by stretch: which way a joint turns a picture depends on where the
    arm is, and over minutes it would seem to have nothing to do with it.
    """
    steps = len(moved.change)
    edges = np.linspace(0, steps, max(1, round(steps / STRETCH)) + 1).astype(int).tolist()
    curves = [
        _vote(path[first : last + 1], moved.part(first, last), hz, window)
        for first, last in itertools.pairwise(edges)
    ]
    return Comparison(curve=tuple(np.sum(curves, 0).tolist()))


def _vote(path: np.ndarray, moved: sync_motion.PictureMotion, hz: float, window: int) -> np.ndarray:
    """Evidence float64[lags] that one view shows a path."""
    whole = moved.change.mean((1, 2))
    rows, columns = (max(1, n // 2) for n in moved.change.shape[1:])
    quarters = [
        moved.change[:, r, c].mean((1, 2))
        for r in (slice(None, rows), slice(rows, None))
        for c in (slice(None, columns), slice(columns, None))
        if moved.change[:, r, c].size
    ]
    x = sync_motion.amount_waves(sync_motion.amounts(path), hz)
    total = np.zeros(2 * window + 1)
    for weight, amount in ((WHOLE, whole[:, None]), (QUARTER, np.stack(quarters, 1))):
        y = sync_motion.amount_waves(amount, hz)
        # More of the one is more of the other: only agreement counts.
        r = np.maximum(correlations(x, y, window), 0)
        total += weight * evidence(x, y, r).sum((1, 2))
    x = sync_motion.signed_waves(sync_motion.directions(path, AXES), hz)
    y = sync_motion.signed_waves(sync_motion.strongest(moved.drift, DRIFTS), hz)
    # Which way a joint turns a picture is unknown: either sign is agreement.
    return total + DIRECTION * evidence(x, y, correlations(x, y, window)).sum((1, 2))


def shift(episode: Episode, actions: int, state: int = 0) -> Episode:
    """Moves streams to later observations (earlier when negative); the ends fall away.

    Args:
      actions: steps by which targets, gripper and native actions move against
        the pictures: what was commanded at t is now at t + actions.
      state: the same for the state, its signals and the cameras' poses.

    Returns:
      The observations of which every stream has one. Pictures and annotations
      keep their order; afterwards `measure(...).lag` is `actions` smaller.

    Raises:
      ValueError: nothing would be left.
    """
    first, last = max(0, actions, state), episode.steps + min(0, actions, state)
    if last <= first:
        raise ValueError(
            f"episode {episode.episode_id}: a shift of {actions} and {state} steps leaves none "
            f"of {episode.steps}; give smaller ones"
        )
    pictures = np.arange(first, last + 1)
    return retake(episode, pictures, state=pictures - state, actions=pictures - actions)


def synchronise(
    episode: Episode,
    natural: Natural | None = None,
    *,
    result: SyncResult | None = None,
) -> tuple[Episode | None, Decision]:
    """Keeps, shifts or quarantines one episode; see the module's text.

    Args:
      natural: of the data set. Without it nothing is shifted: a lone episode is
        kept when a latency can explain its lags, else quarantined.
      result: of `measure` on this very episode and `natural`, where it is known already.

    Returns:
      (the episode in step, None when quarantined; the decision).
    """
    if not episode.action_mask.any() and episode.native is None:
        return episode, _decided(decision.KEPT, "no actions to synchronise", {})
    result = measure(episode, natural=natural) if result is None else result
    numbers = _numbers(result, natural)
    if result.idle or natural is None:
        return _alone(episode, result, numbers)
    if (result.followed is None) and natural.follower:
        reason = "state and commands have nothing in common, unlike in the rest of the data set"
        return None, _decided(decision.QUARANTINED, reason, numbers)
    return _among_others(episode, result, natural, numbers)


def _alone(episode: Episode, result: SyncResult, numbers: dict) -> tuple[Episode | None, Decision]:
    """The verdict where no natural lag is known: a latency passes, nothing is shifted."""
    if result.trouble:
        return None, _decided(decision.QUARANTINED, result.trouble, numbers)
    late = LATENCY_SECONDS * episode.control_hz
    if all(-0.5 < found.place <= late for found in result.parts().values()):
        return episode, _decided(decision.KEPT, f"lag {result.lag:+.1f}, a latency", numbers)
    reason = f"lag {result.lag:+.1f} is no latency and the data set's natural lag is not known"
    return None, _decided(decision.QUARANTINED, reason, numbers)


def _among_others(
    episode: Episode, result: SyncResult, natural: Natural, numbers: dict
) -> tuple[Episode | None, Decision]:
    """Moves what differs from the natural lags beyond doubt."""
    late, state, said, told = _moves(result, natural, episode.steps)
    numbers = numbers | told
    if state and not said:
        against = _against(episode, result, natural, state)
        said = against and f"pictures: split votes, {against}"
    if said:
        return None, _decided(decision.QUARANTINED, said, numbers)
    if not late and not state:
        reason = f"lag {result.lag:+.1f} is natural"
        return episode, _decided(decision.KEPT, reason, numbers)
    # Without a state that follows, the actions alone were compared, and move alone.
    state = state if natural.follower else 0
    reason = f"actions shifted by {late:+d}, state by {state:+d} steps"
    numbers = numbers | {"shift": late, "shift_state": state}
    return shift(episode, late, state), _decided(decision.CHANGED, reason, numbers)


def _moves(result: SyncResult, natural: Natural, steps: int) -> tuple[int, int, str, dict]:
    """Steps by which actions and state are off, why to doubt it ("" if not), the numbers of it."""
    late, doubts, numbers = 0, [], {}
    if natural.follower:
        fit = sync_model.judge(natural.follower, result.traces, PRIOR_NATS)
        if fit is None:
            return 0, 0, "commands: none of the usual", {}
        numbers = {
            "offset": fit.offset, "sure": round(fit.margin, 1),
            "told": round(fit.contrast, 1), "motion": round(fit.motion, 1),
        }  # fmt: skip
        late = -fit.offset - natural.late
        doubts.append(sync_lags.doubt(fit) and f"commands: {sync_lags.doubt(fit)}")
    state, said = _move(result.seen, natural.seen, steps)
    doubts.append(said and f"pictures: {said}")
    late += state
    if max(abs(late), abs(state)) > sync_model.FARTHEST:
        doubts.append(f"off by {late:+d}, out of the window of {sync_model.FARTHEST} steps")
    return late, state, next(filter(None, doubts), ""), numbers


def _against(episode: Episode, result: SyncResult, natural: Natural, move: int) -> str:
    """Which view or half, heard alone, does not put the pictures off by `move` ("" if all do).

    Encoders know a step, pictures of a short glide do not: what only they tell is
    believed where none of them errs.
    """
    for vote in result.votes:
        if round(vote.lag - natural.seen.place) != move:
            return f"{vote.view} says {vote.lag:+d}, all together {result.seen.place:+.1f}"
    path = sync_limbs.body(result.traces, natural.follower)
    middle = episode.steps // 2
    for name, first, last in (("first", 0, middle), ("second", middle, episode.steps)):
        motion = {v: m.part(first, last) for v, m in result.motion.items()}
        half = _views(path[first : last + 1], motion, episode.control_hz, result.seen.window)
        place = _sum(half, result.seen.window).place
        if abs(place - result.seen.place) > BETWEEN:
            return f"the {name} half says {place:+.1f}, the whole {result.seen.place:+.1f}"
    return ""


def _move(found: Comparison, usual: Usual, steps: int) -> tuple[int, str]:
    """Steps by which the pictures are off the usual lag, and why to doubt it ("" if not)."""
    least = max(found.curve) - found.contrast
    found = found.expecting(usual.place, PRIOR_NATS)
    here = found.near(usual.place, max(0.5, usual.spread))
    needed = max(KEPT_NATS, USUAL_SHARE * usual.nats * steps)
    if here - least >= needed and max(found.curve) - here < AGAINST_NATS:
        return 0, ""
    off = found.place - usual.place
    move = round(off)
    if said := found.trouble(SHIFTED_NATS, SHIFTED_CLEAR):
        return move, said
    if not move or max(abs(off - move), usual.spread) > BETWEEN:
        return move, f"{off:+.1f} of the usual lag +-{usual.spread:.1f} is no whole number of steps"
    return move, ""


def _decided(verdict: str, reason: str, numbers: dict) -> Decision:
    return Decision(stage="sync", verdict=verdict, reason=reason, numbers=numbers)


def _numbers(result: SyncResult, natural: Natural | None) -> dict:
    numbers = {
        "lag": round(result.lag, 2),
        "seen": round(result.seen.place, 2),
        "contrast": round(result.seen.contrast, 2),
        "margin": round(result.seen.margin, 2),
        "votes": [f"{v.view}: {v.lag:+d} ({v.nats:.1f})" for v in result.votes],
    }
    if result.followed:
        numbers["followed"] = round(result.followed.place, 2)
    if natural:
        numbers["natural"] = round(natural.seen.place + (natural.followed or 0), 2)
    return numbers


__all__ = [
    "Natural",
    "SyncResult",
    "Vote",
    "measure",
    "natural_by_task",
    "natural_lags",
    "shift",
    "synchronise",
]
