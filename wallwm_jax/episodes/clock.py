"""One place for every frame count: control steps -> sampled frames -> latent frames.

An event of L control steps shows L+1 observations. Video samples them at a
stride, and the causal codec maps `1+4N` sampled frames to `1+N` latent frames:
one leading key frame, then N groups of four (method section 1). So one latent
frame past the key frame stands for `stride * group` control steps:

    control steps     0 1 2 3 4 5 6 7 8                     L = 7
    sampled frames    0   2   4   6   7*                    1+4N = 5, N = 1
    latent frames     [0] [      1      ]                   1+N = 2

    * the last group is filled by repeating the event's last observation, so
      that no event ever shows a frame of the next one.

Nobody else derives these numbers: a second formula that disagrees by one frame
is the classic silent bug of video policies.
"""

import numpy as np
from jaxtyping import Int

STRIDE = 2
"""Control steps per sampled frame (method section 1: video at stride 2)."""

GROUP = 4
"""Sampled frames per latent frame after the key frame (the Wan codec's rule)."""


def event_frames(length: int, stride: int = STRIDE, group: int = GROUP) -> tuple[int, int]:
    """Frames of an event of `length` control steps.

    Args:
      length: L_e, at least 1 control step.
      stride: control steps per sampled frame.
      group: sampled frames per latent frame.

    Returns:
      (N, 1 + group * N): latent frames to generate (the observed key frame is
      not counted) and sampled frames, the observed one first. N is the
      smallest that covers the whole event.

    Raises:
      ValueError: on a length below one step.
    """
    if length < 1:
        raise ValueError(f"an event of {length} control steps has no frames; give at least 1")
    latent = -(-length // (stride * group))
    return latent, 1 + group * latent


def longest_event(latent_frames: int, stride: int = STRIDE, group: int = GROUP) -> int:
    """Longest event, in control steps, that `latent_frames` = 1+N frames cover.

    The inverse of `event_frames` for truncation: 17 latent frames (65 sampled)
    cover 128 steps, which span 129 raw observations (method section 1).
    """
    return (latent_frames - 1) * stride * group


def sampled_observations(
    start: int, end: int, stride: int = STRIDE, group: int = GROUP
) -> Int[np.ndarray, "sampled"]:
    """Which observation each of the `1+4N` sampled frames of [start, end) shows.

    Observation `end` is what the robot sees after the event's last step, so it
    still belongs to the event; later indices are clamped to it.
    """
    _, sampled = event_frames(end - start, stride, group)
    return np.minimum(start + stride * np.arange(sampled), end)


def latent_observations(
    start: int, end: int, stride: int = STRIDE, group: int = GROUP
) -> Int[np.ndarray, "latent"]:
    """Observation shown by the LAST sampled frame of each of the 1+N latent frames."""
    return sampled_observations(start, end, stride, group)[::group]
