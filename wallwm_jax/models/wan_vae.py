"""The two Wan video codecs: 2.1 (16 channels, 8x8 pixels) and 2.2 (48 channels, 16x16).

    z = mean of q(z | video)         1 + fN frames -> 1 + N latent frames, f = 4
    video' = decode(z)               and back, clamped to [-1, 1]

Both are one stack of stages, read from the config; 2.2 cuts the picture into
patches first and lays a parameter-free path around every stage. A clip runs in
chunks of time, which changes no number and keeps the memory of a long clip to
that of a short one. The diffusion towers see latents after `normalise_latents`.

Letters: B clips, T = 1 + fN frames, F = 1 + N latent frames, H W pixels,
h w the latent grid, z latent channels, C channels.
"""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, ArrayLike, Float

from wallwm_jax.models.wan_vae_config import WAN_VAE_SIZES, WanVAEConfig
from wallwm_jax.models.wan_vae_layers import (
    CausalConv,
    DownStage,
    FrameAttention,
    Head,
    Past,
    ResidualBlock,
    UpStage,
    chain,
)
from wallwm_jax.models.wan_vae_tiles import Step, in_tiles, stream

__all__ = ["WAN_VAE_SIZES", "WanVAE", "WanVAEConfig", "denormalise_latents", "normalise_latents"]


def _statistics(config: WanVAEConfig) -> tuple[Array, Array]:
    """Mean and deviation of the latents, float32[z] each."""
    for name in ("latent_mean", "latent_std"):
        values = getattr(config, name) or ()
        # A small model may carry the published codec's; that harms nobody until it is used.
        if len(values) != config.latent_channels:
            raise ValueError(
                f"this codec's config has {len(values)} values in {name} for {config.latent_channels} "
                "latent channels; take them from the config.json of its weights, or measure them"
            )
    return jnp.array(config.latent_mean, jnp.float32), jnp.array(config.latent_std, jnp.float32)


def normalise_latents(config: WanVAEConfig, z: Float[ArrayLike, "*B z"]) -> Float[Array, "*B z"]:
    """Latents as the diffusion towers see them, of about unit variance: (z - mean) / std.

    Raises:
      ValueError: the config does not give the statistics.
    """
    mean, std = _statistics(config)
    z = jnp.asarray(z)
    return ((z - mean) / std).astype(z.dtype)


def denormalise_latents(config: WanVAEConfig, z: Float[ArrayLike, "*B z"]) -> Float[Array, "*B z"]:
    """Latents as the decoder takes them; undoes `normalise_latents`.

    Raises:
      ValueError: the config does not give the statistics.
    """
    mean, std = _statistics(config)
    z = jnp.asarray(z)
    return (z * std + mean).astype(z.dtype)


def _middle(width: int, dtypes: dict[str, jnp.dtype]) -> list[nn.Module]:
    """Attention between two blocks at the coarsest resolution."""
    return [
        ResidualBlock(width, name="middle_0", **dtypes),
        FrameAttention(name="middle_attention", **dtypes),
        ResidualBlock(width, name="middle_1", **dtypes),
    ]


class Encoder(nn.Module):
    """Patches of pixels to the latents' mean and log-variance, one chunk of time."""

    config: WanVAEConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H W C"], past: Past = None
    ) -> tuple[Float[Array, "B F h w zz"], Past]:
        c = self.config
        stages = [
            DownStage(stage, name=f"stage_{i}", **c.dtypes)
            for i, stage in enumerate(c.encoder_stages)
        ]
        layers = [
            CausalConv(c.encoder_width, name="conv_in", **c.dtypes),
            *stages,
            *_middle(c.encoder_stages[-1].width, c.dtypes),
            Head(2 * c.latent_channels, name="head", **c.dtypes),
        ]
        return chain(layers, x, past)


class Decoder(nn.Module):
    """Latents to patches of pixels, one chunk of time."""

    config: WanVAEConfig

    @nn.compact
    def __call__(
        self, z: Float[Array, "B F h w z"], past: Past = None
    ) -> tuple[Float[Array, "B T H W C"], Past]:
        c = self.config
        width = c.decoder_stages[0].inputs
        stages = [
            UpStage(stage, name=f"stage_{i}", **c.dtypes)
            for i, stage in enumerate(c.decoder_stages)
        ]
        layers = [
            CausalConv(width, name="conv_in", **c.dtypes),
            *_middle(width, c.dtypes),
            *stages,
            Head(c.out_channels, name="head", **c.dtypes),
        ]
        return chain(layers, z, past)


def _to_latents(vae: "WanVAE", frames: Array, past: Past) -> tuple[Array, Past]:
    """One chunk: pixels to means."""
    c = vae.config
    # Wan orders a patch's channels by colour, column, row.
    patches = rearrange(
        frames.astype(c.dtype), "b t (h p) (w q) c -> b t h w (c q p)", p=c.patch, q=c.patch
    )
    moments, past = vae.encoder(patches, past)
    return vae.quant(moments)[..., : c.latent_channels], past


def _to_patches(vae: "WanVAE", z: Array, past: Past) -> tuple[Array, Past]:
    """One chunk: latents to patches of pixels."""
    return vae.decoder(vae.post_quant(z.astype(vae.config.dtype)), past)


def _to_pixels(vae: "WanVAE", z: Array, past: Past) -> tuple[Array, Past]:
    """One chunk: latents to pixels."""
    patches, past = _to_patches(vae, z, past)
    return vae.join(patches), past


class WanVAE(nn.Module):
    """A Wan codec: `encode`, `decode`, and both in tiles of the picture.

    `groups_per_chunk` counts the latent frames that run at once: 1 needs the
    least memory, None takes the whole clip. The numbers do not depend on it.
    """

    config: WanVAEConfig

    def setup(self) -> None:
        c = self.config
        self.encoder = Encoder(c)
        self.quant = nn.Dense(2 * c.latent_channels, **c.dtypes)
        self.post_quant = nn.Dense(c.latent_channels, **c.dtypes)
        self.decoder = Decoder(c)

    def __call__(self, video: Float[ArrayLike, "B T H W C"]) -> Float[Array, "B T h w O"]:
        """A clip there and back; makes every parameter, even from a single frame."""
        return self.decode(self.encode(video))

    def encode(
        self, video: Float[ArrayLike, "B T H W C"], groups_per_chunk: int | None = 1
    ) -> Float[Array, "B F h w z"]:
        """A clip in [-1, 1] to the mean of its latents, not normalised.

        Raises:
          ValueError: T is not 1 + fN, or the picture does not fit the codec.
        """
        video = jnp.asarray(video)
        self._check_video(video)
        return self._encoder_in_time(groups_per_chunk)(self, video)

    def decode(
        self, latents: Float[ArrayLike, "B F h w z"], groups_per_chunk: int | None = 1
    ) -> Float[Array, "B T H W C"]:
        """Latents, not normalised, to a clip clamped to [-1, 1].

        Raises:
          ValueError: latents of another codec.
        """
        latents = jnp.asarray(latents)
        self._check_latents(latents)
        return self._decoder_in_time(_to_pixels, groups_per_chunk)(self, latents)

    def encode_tiled(
        self,
        video: Float[ArrayLike, "B T H W C"],
        tile: tuple[int, int] = (256, 256),
        stride: tuple[int, int] = (192, 192),
        groups_per_chunk: int | None = 1,
    ) -> Float[Array, "B F h w z"]:
        """`encode` with the memory of one tile; near seams the latents differ a little.

        Args:
          video: clip in [-1, 1].
          tile, stride: rows and columns of a tile and from one to the next, in pixels.
          groups_per_chunk: latent frames at once.

        Raises:
          ValueError: as `encode`, or tiles that are not whole latent pixels.
        """
        video = jnp.asarray(video)
        self._check_video(video)
        self._check_tiles(tile, stride)
        ratio = self.config.space_factor
        for size, side in zip(video.shape[2:4], stride, strict=True):
            # A last tile thinner than a latent pixel would be part of none.
            self._check_side(size % side or side)
        run = self._encoder_in_time(groups_per_chunk)
        return in_tiles(self, run, video, tile, stride, lambda pixels: pixels // ratio)

    def decode_tiled(
        self,
        latents: Float[ArrayLike, "B F h w z"],
        tile: tuple[int, int] = (256, 256),
        stride: tuple[int, int] = (192, 192),
        groups_per_chunk: int | None = 1,
    ) -> Float[Array, "B T H W C"]:
        """`decode` with the memory of one tile; tiles overlap and fade into each other.

        Args:
          latents: not normalised.
          tile, stride: rows and columns of a tile and from one to the next, in pixels.
          groups_per_chunk: latent frames at once.

        Raises:
          ValueError: as `decode`, or tiles that are not whole latent pixels.
        """
        latents = jnp.asarray(latents)
        self._check_latents(latents)
        self._check_tiles(tile, stride)
        c, ratio = self.config, self.config.space_factor
        run = self._decoder_in_time(_to_patches, groups_per_chunk)
        tile, stride = ((size[0] // ratio, size[1] // ratio) for size in (tile, stride))
        # Tiles fade as patches, before the clamp, as the reference's do.
        return self.join(in_tiles(self, run, latents, tile, stride, lambda n: n * ratio // c.patch))

    def join(self, patches: Float[Array, "B T h w C"]) -> Float[Array, "B T H W O"]:
        """Puts patches back into the picture and clamps it to [-1, 1]."""
        patch = self.config.patch
        video = rearrange(patches, "b t h w (c q p) -> b t (h p) (w q) c", p=patch, q=patch)
        return jnp.clip(video, -1.0, 1.0)

    def _encoder_in_time(self, groups: int | None) -> Callable[["WanVAE", Array], Array]:
        """The encoder over a whole clip of some picture."""
        factor = self.config.time_factor

        def run(vae: "WanVAE", video: Array) -> Array:
            first, group = _chunks((video.shape[1] - 1) // factor, groups)
            return stream(vae, _to_latents, video, 1 + factor * first, factor * group, group)

        return run

    def _decoder_in_time(
        self, step: Step, groups: int | None
    ) -> Callable[["WanVAE", Array], Array]:
        """The decoder over all latents of some picture, by `step`."""
        factor = self.config.time_factor

        def run(vae: "WanVAE", latents: Array) -> Array:
            first, group = _chunks(latents.shape[1] - 1, groups)
            return stream(vae, step, latents, 1 + first, group, factor * group)

        return run

    def _check_video(self, video: Array) -> None:
        """Refuses clips that do not come out as whole latents."""
        c = self.config
        frames, *sides, colours = video.shape[1:]
        if colours != c.in_channels // c.patch**2:
            raise ValueError(
                f"clip has {colours} colours in its last axis, this codec reads "
                f"{c.in_channels // c.patch**2}; bring it to [B, T, H, W, colours]"
            )
        if (frames - 1) % c.time_factor or not frames:
            raise ValueError(
                f"clip has {frames} frames, this codec needs 1 + {c.time_factor}N; "
                "cut it or repeat its last frame"
            )
        for side in sides:
            self._check_side(side)

    def _check_side(self, side: int) -> None:
        """Refuses sides of a picture (or tile) that do not reach the latent grid."""
        c = self.config
        # Convolutions alone leave a remainder out; the ways around a stage cannot.
        whole = c.space_factor if c.residual else c.patch
        if side % whole or side < c.space_factor:
            raise ValueError(
                f"picture (or its last tile) has a side of {side} pixels, this codec needs a "
                f"multiple of {whole}, at least {c.space_factor}; crop, pad or resize it"
            )

    def _check_latents(self, latents: Array) -> None:
        """Refuses latents of another codec, and none at all."""
        if latents.shape[-1] != self.config.latent_channels or 0 in latents.shape:
            raise ValueError(
                f"latents have the shape {latents.shape}, this codec decodes "
                f"[B, F, h, w, {self.config.latent_channels}], each at least 1"
            )

    def _check_tiles(self, tile: tuple[int, int], stride: tuple[int, int]) -> None:
        """Refuses tiles that do not cover the latent grid."""
        ratio = self.config.space_factor
        for length, step in zip(tile, stride, strict=True):
            if length % ratio or step % ratio or not 0 < step <= length:
                raise ValueError(
                    f"tiles of {tile} pixels every {stride}: both must be multiples of {ratio}, "
                    "and the stride above 0 and at most the tile"
                )


def _chunks(groups: int, per_chunk: int | None) -> tuple[int, int]:
    """(groups that join the first frame, groups of each further chunk).

    The first chunk takes what does not divide, so that all others are alike.
    """
    if per_chunk is None:
        return groups, 1
    if per_chunk < 1:
        raise ValueError(f"groups_per_chunk is {per_chunk}; it must be at least 1, or None")
    return groups % per_chunk, per_chunk
