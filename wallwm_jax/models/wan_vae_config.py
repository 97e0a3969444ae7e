"""Sizes of the Wan video codecs, as data: what a codec is made of, stage by stage."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from wallwm_jax.models.wan_vae_layers import Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class WanVAEConfig:
    """Sizes of a Wan codec; the named ones are in `WAN_VAE_SIZES`.

    Attributes:
      encoder_width, decoder_width: channels at full resolution.
      latent_channels: z.
      multipliers: of the width, per resolution from full to coarsest.
      blocks: residual blocks per resolution; the decoder has one more.
      time: from one resolution to the next coarser, whether the frame rate halves too.
      residual: whether a parameter-free path goes around every stage (2.2).
      patch: side of the squares of pixels that enter as channels; 1 is pixels.
      in_channels, out_channels: after patches are cut, so patch**2 times the colours.
      latent_mean, latent_std: per channel, for `normalise_latents`.
      dropout: of the reference's training; encoding and decoding never drop.
      dtype, param_dtype: of activations and of parameters.

    Raises:
      ValueError: sizes that do not fit each other.
    """

    encoder_width: int
    decoder_width: int
    latent_channels: int
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    time: tuple[bool, ...] = (False, True, True)
    residual: bool = False
    patch: int = 1
    in_channels: int = 3
    out_channels: int = 3
    latent_mean: tuple[float, ...] | None = None
    latent_std: tuple[float, ...] | None = None
    dropout: float = 0.0
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self) -> None:
        if len(self.time) != len(self.multipliers) - 1:
            raise ValueError(
                f"time has {len(self.time)} entries for {len(self.multipliers)} multipliers; "
                "it needs one less than those"
            )
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) % self.patch**2:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, not a multiple of patch**2 = {self.patch**2}"
                )
        if self.residual:
            self._check_ways_around()

    def _check_ways_around(self) -> None:
        """Refuses widths between which channels cannot be averaged or repeated evenly."""
        down = [(s.inputs, s.width, s) for s in self.encoder_stages]
        up = [(s.width, s.inputs, s) for s in self.decoder_stages if s.space]
        for fine, coarse, stage in down + up:
            if fine * (1 + stage.time) * (1 + 3 * stage.space) % coarse:
                raise ValueError(
                    f"a residual codec cannot go from {stage.inputs} to {stage.width} channels: "
                    "the finer side's channels times the pixels that are folded into one must be "
                    "a multiple of the other's"
                )

    @property
    def dtypes(self) -> dict[str, jnp.dtype]:
        """Compute and parameter dtype, as Linen modules take them."""
        return dict(dtype=jnp.dtype(self.dtype), param_dtype=jnp.dtype(self.param_dtype))

    @property
    def time_factor(self) -> int:
        """Frames behind each latent frame but the first."""
        return 2 ** sum(self.time)

    @property
    def space_factor(self) -> int:
        """Pixels along the side of a latent pixel."""
        return self.patch * 2 ** len(self.time)

    @property
    def encoder_stages(self) -> tuple[Stage, ...]:
        """From full resolution to the coarsest."""
        widths = [self.encoder_width * m for m in (1, *self.multipliers)]
        return tuple(
            Stage(
                inputs=widths[i],
                width=widths[i + 1],
                blocks=self.blocks,
                space=i < len(self.time),
                time=(*self.time, False)[i],
                residual=self.residual,
            )
            for i in range(len(self.multipliers))
        )

    @property
    def decoder_stages(self) -> tuple[Stage, ...]:
        """From the coarsest resolution to full."""
        widths = [self.decoder_width * m for m in (*self.multipliers, self.multipliers[-1])][::-1]
        return tuple(
            Stage(
                # Without the way around it, the stage before has halved the width.
                inputs=widths[i] if self.residual or i == 0 else widths[i] // 2,
                width=widths[i + 1],
                blocks=self.blocks + 1,
                space=i < len(self.time),
                time=(*self.time[::-1], False)[i],
                residual=self.residual,
            )
            for i in range(len(self.multipliers))
        )


_TINY = dict(encoder_width=8, blocks=1)
_PATCHED = dict(residual=True, patch=2, in_channels=12, out_channels=12)

# fmt: off
WAN_VAE_SIZES: dict[str, dict[str, Any]] = {
    "tiny-2.1": dict(
        **_TINY, decoder_width=8, latent_channels=16,
        latent_mean=(0.0,) * 16, latent_std=(1.0,) * 16,
    ),
    "tiny-2.2": dict(
        **_TINY, **_PATCHED, decoder_width=16, latent_channels=48,
        latent_mean=(0.0,) * 48, latent_std=(1.0,) * 48,
    ),
    "wan2.1": dict(
        encoder_width=96, decoder_width=96, latent_channels=16,
        latent_mean=(
            -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
            0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
        ),
        latent_std=(
            2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
            3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
        ),
    ),
    "wan2.2": dict(
        **_PATCHED, encoder_width=160, decoder_width=256, latent_channels=48,
        latent_mean=(
            -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557,
            -0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825,
            -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
            -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230,
            -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748,
            0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
        ),
        latent_std=(
            0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013,
            0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978,
            0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
            0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093,
            0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887,
            0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
        ),
    ),
}
"""Published sizes and latent statistics, and two sizes for two CPU cores."""
# fmt: on
