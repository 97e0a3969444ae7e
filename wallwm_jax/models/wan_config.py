"""Sizes of the Wan diffusion transformers."""

import dataclasses

from wallwm_jax.models.layers import TowerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class WanConfig(TowerConfig):
    """Sizes of a Wan DiT; the named sizes are in `WAN_SIZES`.

    Attributes:
      in_channels: 2C + 4 for the image-to-video form that lays the observation
        beside the noisy latents: [noisy C, mask 4, observed C].
      gate_bias: added to the residual gates' table at initialisation. 0 is
        Wan's own; 1 lets a tower that is trained from scratch learn from the
        first step (a small budget, no inherited weights).
      text_norm: whether the text attention has a LayerNorm before it.
      image_width: channels of the picture features that the text attention
        also reads (Wan2.1 image-to-video: CLIP, 1280); None: it reads text only.
      image_positions: rows of the learned position table of those features
        (first-and-last-frame models: 514); None: no table.
    """

    in_channels: int
    out_channels: int
    text_width: int
    patch: tuple[int, int, int] = (1, 2, 2)
    gate_bias: float = 0.0
    text_norm: bool = True
    image_width: int | None = None
    image_positions: int | None = None


_1_3B = dict(width=1536, heads=12, layers=30, ffn=8960, text_width=4096)
_5B = dict(width=3072, heads=24, layers=30, ffn=14336, text_width=4096)
_14B = dict(width=5120, heads=40, layers=40, ffn=13824, text_width=4096)

WAN_SIZES: dict[str, dict[str, int]] = {
    "tiny": dict(
        width=96, heads=4, layers=4, ffn=384, in_channels=16, out_channels=16, text_width=64
    ),
    "wan2.1-t2v-1.3b": dict(_1_3B, in_channels=16, out_channels=16),
    "wan2.1-t2v-14b": dict(_14B, in_channels=16, out_channels=16),
    "wan2.1-i2v-14b": dict(_14B, in_channels=36, out_channels=16, image_width=1280),
    "wan2.2-ti2v-5b": dict(_5B, in_channels=48, out_channels=48),
    # Wan2.2's A14B models are two experts each, two checkpoints of this shape:
    # one for the noisy part of the schedule, one for the rest.
    "wan2.2-t2v-a14b": dict(_14B, in_channels=16, out_channels=16),
    "wan2.2-i2v-a14b": dict(_14B, in_channels=36, out_channels=16),
}
"""Published sizes (method section 2), and the one that trains on two CPU cores."""
