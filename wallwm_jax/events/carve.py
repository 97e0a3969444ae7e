"""Episode -> spans of one behaviour each: the events' boundaries (method section 6).

Every boundary is a change of behaviour (see `behaviour`). The clock enters only
as a shortest length, because noise is not behaviour, and as a longest one,
because a model has a capacity; and even then the cut is made where the hand is
slowest.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from wallwm_jax.episodes.record import Episode, EventSpan
from wallwm_jax.events import behaviour, motion
from wallwm_jax.events.caption import CHUNK


def carve(episode: Episode, *, min_length: int = 4, max_length: int = 32) -> list[EventSpan]:
    """Cuts an episode where its behaviour changes.

    Args:
      min_length: control steps; shorter runs join their longer neighbour.
      max_length: control steps; longer runs are cut where the hand is slowest.

    Returns:
      Spans that cover [0, T) in order, without gap or overlap.

    Raises:
      ValueError: when lengths disagree or a signal is missing.
    """
    episode.check()
    labels = behaviour.step_labels(episode)
    spans = _reach_first(merge_short(_spans(labels), min_length))
    hand = motion.speed(episode.signals["hand_position"], episode.control_hz)
    return [piece for span in spans for piece in cut_long(span, hand, max_length, min_length)]


def fixed_chunks(episode: Episode, length: int) -> list[EventSpan]:
    """Chunks of `length` steps, the last one shorter: the U-Scratch baseline."""
    edges = [*range(0, episode.steps, length), episode.steps]
    return [EventSpan(start=a, end=b, label=CHUNK) for a, b in zip(edges, edges[1:], strict=False)]


def merge_short(spans: Sequence[EventSpan], min_length: int) -> list[EventSpan]:
    """Gives spans below `min_length` to their longer neighbour, shortest first."""
    spans = list(spans)
    while len(spans) > 1:
        i = min(range(len(spans)), key=lambda k: spans[k].length)
        if spans[i].length >= min_length:
            break
        sides = [k for k in (i - 1, i + 1) if 0 <= k < len(spans)]
        j = max(sides, key=lambda k: spans[k].length)
        first, last = min(i, j), max(i, j)
        joined = EventSpan(start=spans[first].start, end=spans[last].end, label=spans[j].label)
        spans[first : last + 1] = [joined]
        spans = _join_equal(spans)
    return spans


def cut_long(
    span: EventSpan,
    hand_speed: Float[np.ndarray, "steps"],
    max_length: int,
    min_length: int = 1,
) -> list[EventSpan]:
    """Cuts a span above `max_length` where the hand is slowest in its middle half.

    Repeated on the halves until all fit. `hand_speed` covers the episode.
    """
    if span.length <= max_length:
        return [span]
    margin = max(min_length, span.length // 4)
    middle = hand_speed[span.start + margin : span.end - margin]
    cut = span.start + margin + int(np.argmin(middle)) if len(middle) else span.start + max_length
    halves = (dataclasses.replace(span, end=cut), dataclasses.replace(span, start=cut))
    return [
        piece for half in halves for piece in cut_long(half, hand_speed, max_length, min_length)
    ]


def _spans(labels: Sequence[str]) -> list[EventSpan]:
    edges = [t for t in range(len(labels)) if t == 0 or labels[t] != labels[t - 1]]
    ends = [*edges[1:], len(labels)]
    return [EventSpan(start=a, end=b, label=labels[a]) for a, b in zip(edges, ends, strict=True)]


def _join_equal(spans: Sequence[EventSpan]) -> list[EventSpan]:
    out: list[EventSpan] = []
    for span in spans:
        if out and out[-1].label == span.label:
            out[-1] = EventSpan(start=out[-1].start, end=span.end, label=span.label)
        else:
            out.append(span)
    return out


def _reach_first(spans: Sequence[EventSpan]) -> list[EventSpan]:
    """The first leg of an approach is a reach, also when merging took the real one."""
    out: list[EventSpan] = []
    for span in spans:
        first = span.label == "approach" and (not out or out[-1].label != "reach")
        out.append(dataclasses.replace(span, label="reach") if first else span)
    return out
