"""Model FLOPs utilisation: what part of the devices' peak a step used.

Counted are the matrix products of the video tower on the batch's shape, padding
included, forward once and backward twice (`models.flops`). What rematerialisation
computes again is not counted, so less of it shows as a higher figure. Only stages
that train the video tower alone have a count; others have no figure, not a wrong one.
"""

import math

from wallwm_jax.input.batch import Batch
from wallwm_jax.models.flops import Sequence, forward_flops
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


def step_flops(config: VideoConfig, grid: tuple[int, int], batch: Batch) -> float:
    """Operations of one update of the video tower alone on a batch of this shape.

    Args:
      config: of the video tower.
      grid: tokens of one latent frame of one view, (h, w).
      batch: only its shapes are read.
    """
    sequences, views, frames = batch.latents.shape[:3]
    shape = Sequence(
        frames=frames,
        frame_tokens=math.prod(grid),
        text=math.prod(batch.text.shape[1:]),
        views=views,
        times=frames,
    )
    forward = forward_flops(config.wan, shape, cross_view=views > 1, duration=config.duration)
    return 3.0 * sequences * sum(forward.values())


COUNTED = ("video",)
"""What a stage must train, no more and no less, for `step_flops` to be its count."""


def utilisation(flops: float | None, seconds: float, peak: float | None) -> dict[str, float]:
    """{"mfu": share of the peak}, or nothing where one of its parts is not known."""
    if flops is None or peak is None:
        return {}
    return {"mfu": flops / seconds / peak}
