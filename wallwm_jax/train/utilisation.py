"""Model FLOPs utilisation: what part of the devices' peak a step used.

Counted are the matrix products of the video and the action tower on the batch's
shape, padding included: what trains forward once and backward twice, what is
frozen forward once (`models.flops`). Neither what rematerialisation computes again
nor the frozen text encoder is counted, so less of either shows as a higher figure.
"""

import math
from collections.abc import Sequence

from wallwm_jax.input.batch import Batch
from wallwm_jax.models.action_tower import ActionConfig
from wallwm_jax.models.flops import Sequence as Shape
from wallwm_jax.models.flops import action_end_flops, action_layer_flops, forward_flops
from wallwm_jax.models.video_tower import VideoConfig

PEAK = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}
"""Dense 16-bit operations per second of one device, by the beginning of its kind's name."""


def peak_flops(kind: str, devices: int) -> float | None:
    """Peak of so many devices of one kind; None for a kind that is not in PEAK."""
    known = [name for name in PEAK if kind.startswith(name)]
    # "TPU v5 lite" begins like "TPU v5".
    return PEAK[max(known, key=len)] * devices if known else None


def step_flops(
    video: VideoConfig,
    action: ActionConfig,
    trains: Sequence[str],
    grid: tuple[int, int],
    batch: Batch,
    draws: int = 1,
) -> float:
    """Operations of one update on a batch of this shape.

    Args:
      video, action: sizes of the towers.
      trains: "video", "action" or both; the action tower is read only if it trains.
      grid: tokens of one latent frame of one view, (h, w).
      batch: only its shapes are read.
      draws: of noise for the actions, for one forward of the video tower.
    """
    sequences, views, frames = batch.latents.shape[:3]
    shape = Shape(
        frames=frames,
        frame_tokens=math.prod(grid),
        text=math.prod(batch.text.shape[1:]),
        views=views,
        times=frames,
    )
    forward = forward_flops(video.wan, shape, cross_view=views > 1, duration=video.duration)
    total = (3 if "video" in trains else 1) * sum(forward.values())
    if "action" in trains:
        sizes = (action, shape, batch.actions.shape[1], batch.text.shape[1])
        layer, ends = action_layer_flops(*sizes), action_end_flops(*sizes)
        once = action.layers * layer.pop("reader") + ends.pop("places")
        each = action.layers * sum(layer.values()) + sum(ends.values())
        total += 3 * (once + draws * each)
    return float(sequences * total)


def utilisation(flops: float | None, seconds: float, peak: float | None) -> dict[str, float]:
    """{"mfu": share of the peak}, or nothing where one of its parts is not known."""
    if flops is None or peak is None:
        return {}
    return {"mfu": flops / seconds / peak}
