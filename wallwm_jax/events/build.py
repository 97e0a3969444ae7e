"""Episode + spans -> stored events: frames, actions, state, captions, time left.

Action k (0-based) of the event [s, e) is the commanded pose after step s+k,
relative to the commanded pose at s: the reference is what was asked of the arm,
not where the arm lags behind, so executing event after event adds up without
drift.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32

from wallwm_jax.episodes import action_space, clock
from wallwm_jax.episodes.record import Episode, Event, EventSpan
from wallwm_jax.events import caption


def check_spans(episode: Episode, spans: Sequence[EventSpan]) -> None:
    """Raises ValueError unless the spans tile [0, T) in order."""
    edge = 0
    for number, span in enumerate(spans):
        if span.start != edge or span.end <= span.start:
            raise ValueError(
                f"episode {episode.episode_id}: event {number} is "
                f"[{span.start}, {span.end}) but must start at {edge} and not be "
                "empty; events follow one another without gap or overlap"
            )
        edge = span.end
    if edge != episode.steps:
        raise ValueError(
            f"episode {episode.episode_id}: events end at step {edge} of "
            f"{episode.steps}; the last event must reach the end"
        )


def events_of(
    episode: Episode,
    spans: Sequence[EventSpan],
    stride: int = clock.STRIDE,
    group: int = clock.GROUP,
) -> list[Event]:
    """Builds one `Event` per span.

    Args:
      episode: checked here, see `Episode.check`.
      spans: tiles [0, T), e.g. from `carve.carve` or `carve.fixed_chunks`.
      stride, group: see `episodes.clock`.

    Raises:
      ValueError: mismatched lengths in the episode, or spans with a gap.
    """
    episode.check()
    check_spans(episode, spans)
    captions = caption.captions_of(episode, spans)
    following = [c["action"] for c in captions[1:]] + [""]
    return [
        _event(episode, index, span, captions[index], following[index], stride, group)
        for index, span in enumerate(spans)
    ]


def _event(
    episode: Episode,
    index: int,
    span: EventSpan,
    captions: dict[str, str],
    next_caption: str,
    stride: int,
    group: int,
) -> Event:
    shown = clock.sampled_observations(span.start, span.end, stride, group)
    actions, mask = event_actions(episode, span)
    return Event(
        episode_id=episode.episode_id,
        task=episode.task,
        seed=episode.seed,
        index=index,
        start=span.start,
        end=span.end,
        label=span.label,
        control_hz=episode.control_hz,
        captions=captions,
        next_caption=next_caption,
        remaining_seconds=(episode.steps - span.start) / episode.control_hz,
        frames={view: images[shown] for view, images in episode.frames.items()},
        intrinsics={view: camera.intrinsics for view, camera in episode.cameras.items()},
        extrinsics={view: camera.extrinsics[shown] for view, camera in episode.cameras.items()},
        state=episode.state[span.start],
        actions=actions,
        action_mask=mask,
    )


def event_actions(
    episode: Episode, span: EventSpan
) -> tuple[Float32[np.ndarray, "steps 20"], Bool[np.ndarray, "20"]]:
    """Canonical actions float32[L_e, 20] of a span and their mask bool[20]."""
    # Targets are those AFTER each step, hence the shift by one; the gripper
    # command belongs to the step itself.
    after = slice(span.start + 1, span.end + 1)
    arm = action_space.relative_to(
        episode.target_position[after],
        episode.target_rotation[after],
        episode.gripper_command[span.start : span.end],
        episode.target_position[span.start],
        episode.target_rotation[span.start],
    )
    return action_space.canonical(arm, episode.embodiment)
