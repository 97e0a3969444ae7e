"""One episode through the whole pipeline: the function that every runner maps (method section 6).

    sync --> clean --> prune --> carve --> caption --> events

Each stage is a pure function with its own file and says what it decided. The
order is the method's: actions are shifted onto the pictures before anything is
cut by them, and spans are carved before they are captioned.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from wallwm_jax.episodes import clock
from wallwm_jax.episodes.film import Fitted, placement
from wallwm_jax.episodes.record import Camera, Episode, EventSpan
from wallwm_jax.episodes.resample import at_rate
from wallwm_jax.events import build, captioners, clean, prune, spans, sync
from wallwm_jax.events.captioners import Captioner, Captions
from wallwm_jax.events.decision import CHANGED, REJECTED, Decision
from wallwm_jax.events.outcome import Outcome
from wallwm_jax.events.sync import Natural

RATE_TOLERANCE = 0.005
"""Relative difference of control rates that still counts as equal (59.94 and 60)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preparation:
    """How imported episodes become events. Plain values: it is part of the store's settings.

    Attributes:
      views: what every event must show, in this order.
      control_hz: of the store, control steps per second.
      retime: whether robot episodes of another rate are re-timed, too; else
        they are refused.
      image_size: pixels of the square pictures.
      segmentation: "given" (the source's captions), "discover" (change points),
        "fixed" (chunks), or "auto": given where an episode has captions, else
        discovered.
      min_length, max_length: control steps of a discovered event. A given one
        that is longer keeps its caption and is stored truncated.
      chunk_length: of fixed segmentation.
      sync, clean, prune: whether the stage runs.
      natural: task -> the lags its episodes usually have, "" for all others; see
        `sync.Natural`. Where none is known, nothing is shifted.
      unverified: whether episodes in which nothing can be compared (too short,
        too little motion) pass, with a warning; else they are quarantined.
    """

    views: tuple[str, ...]
    control_hz: float
    retime: bool = False
    image_size: int = 224
    segmentation: str = "auto"
    min_length: int = 4
    max_length: int = 128
    chunk_length: int = 16
    sync: bool = True
    clean: bool = True
    prune: bool = False
    natural: Mapping[str, Natural] = dataclasses.field(default_factory=dict)
    unverified: bool = True
    stride: int = clock.STRIDE
    group: int = clock.GROUP


@dataclasses.dataclass(frozen=True, kw_only=True)
class Annotated:
    """An episode after carving and captioning, at its own resolution.

    Attributes:
      spans, captions: one dictionary of track -> text per span.
      frames: observations with pictures of the episode as it was read.
      decisions: of every stage.
      skipped: why there are no spans; "" when there are.
    """

    episode: Episode
    spans: list[EventSpan]
    captions: Captions
    frames: int
    decisions: tuple[Decision, ...]
    skipped: str = ""


def annotated(
    episode: Episode, options: Preparation, captioner: Captioner = captioners.default
) -> Annotated:
    """Synchronises, cleans, prunes, carves and captions one imported episode.

    Args:
      captioner: writes the caption tracks of the carved spans.

    Raises:
      SourceError: pictures cannot be decoded.
      ValueError: the episode contradicts itself.
    """
    frames, decisions = (len(episode.state) if episode.frames else 0), []

    def skipped(decision: Decision) -> Annotated:
        return Annotated(
            episode=episode, spans=[], captions=[], frames=frames, decisions=tuple(decisions),
            skipped=f"{decision.stage}: {decision.reason}",
        )  # fmt: skip

    # The natural lags were learnt at the source's own rate.
    for stage in (_views, _sync, _rate, _clean, _prune):
        episode, decision = stage(episode, options)
        if decision is not None:
            decisions.append(decision)
            if not decision.passes:
                return skipped(decision)
    episode.check()
    found, decision = spans.spans_of(episode, options.segmentation, options)
    decisions.append(decision)
    if not found:
        return skipped(decision)
    return Annotated(
        episode=episode,
        spans=found,
        captions=captioner(episode, found),
        frames=frames,
        decisions=tuple(decisions),
    )


def prepared(
    episode: Episode, options: Preparation, captioner: Captioner = captioners.default
) -> Outcome:
    """An imported episode as events, see `annotated`; or the reason there are none.

    Quarantined and rejected episodes have none; their decisions say why.

    Raises:
      As `annotated`.
    """
    made = annotated(episode, options, captioner)
    if made.skipped:
        return Outcome(
            events=[], frames=made.frames, decisions=made.decisions, skipped=made.skipped
        )
    events = build.events_of(
        fitted(made.episode, options.image_size),
        made.spans,
        captions=made.captions,
        max_length=options.max_length,
        stride=options.stride,
        group=options.group,
    )
    return Outcome(
        events=events,
        frames=made.frames,
        decisions=made.decisions,
        warnings=tuple(d.reason for d in made.decisions if d.verdict == CHANGED),
        uncalibrated=tuple(v for v in made.episode.frames if v not in made.episode.cameras),
        letterboxed=tuple(v for v, f in made.episode.frames.items() if f.shape[1] != f.shape[2]),
    )


def fitted(episode: Episode, size: int) -> Episode:
    """The episode with square pictures of `size` pixels, cameras moved along."""
    frames = {view: Fitted(film, size) for view, film in episode.frames.items()}
    cameras = {
        view: _fitted_camera(camera, *episode.frames[view].shape[1:3], size)
        for view, camera in episode.cameras.items()
    }
    return dataclasses.replace(episode, frames=frames, cameras=cameras)


def _fitted_camera(camera: Camera, height: int, width: int, size: int) -> Camera:
    """Intrinsics after scaling and letterboxing; see `film.Fitted`.

    The centre of the first pixel is (0.5, 0.5), so scaling about the corner is
    a plain multiplication.
    """
    scale, top, left = placement(height, width, size)
    moved = np.diag([scale, scale, 1.0]) @ camera.intrinsics
    moved[:2, 2] += [left, top]
    return dataclasses.replace(camera, intrinsics=moved)


def _views(episode: Episode, options: Preparation) -> tuple[Episode, Decision | None]:
    """Exactly the store's views: without one of them an episode cannot join the others."""
    if missing := [v for v in options.views if v not in episode.frames]:
        reason = f"missing camera stream {', '.join(missing)}"
        return episode, Decision(stage="views", verdict=REJECTED, reason=reason)
    frames = {v: episode.frames[v] for v in options.views}
    cameras = {v: c for v, c in episode.cameras.items() if v in frames}
    return dataclasses.replace(episode, frames=frames, cameras=cameras), None


def _rate(episode: Episode, options: Preparation) -> tuple[Episode, Decision | None]:
    """Episodes of another rate: videos are re-timed, a robot's record is refused.

    A robot record of the wrong rate says that somebody's clock was wrong
    (method section 6); a web video simply has the rate it has.
    """
    ratio = episode.control_hz / options.control_hz
    if abs(ratio - 1) <= RATE_TOLERANCE:
        return dataclasses.replace(episode, control_hz=options.control_hz), None
    rates = f"{episode.control_hz:g} Hz where the data set has {options.control_hz:g}"
    if episode.arms and not options.retime:
        reason = f"wrong frame rate: {rates}"
        return episode, Decision(stage="rate", verdict=REJECTED, reason=reason)
    reason = f"re-timed: {rates}"
    return at_rate(episode, options.control_hz), Decision(
        stage="rate", verdict=CHANGED, reason=reason
    )


def _sync(episode: Episode, options: Preparation) -> tuple[Episode, Decision | None]:
    if not options.sync or not episode.arms or not episode.frames:
        return episode, None
    natural = options.natural.get(episode.task) or options.natural.get("")
    result = sync.measure(episode, natural=natural)
    if result.idle and options.unverified:
        reason = f"actions not checked against pictures: {result.idle}"
        return episode, Decision(stage="sync", verdict=CHANGED, reason=reason)
    synchronised, decision = sync.synchronise(episode, natural, result=result)
    return (episode if synchronised is None else synchronised), decision


def _clean(episode: Episode, options: Preparation) -> tuple[Episode, Decision | None]:
    return (episode, clean.clean(episode)) if options.clean else (episode, None)


def _prune(episode: Episode, options: Preparation) -> tuple[Episode, Decision | None]:
    return prune.prune(episode) if options.prune else (episode, None)
