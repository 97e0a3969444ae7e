"""Layers of the Wan VAEs: causal in time, the same for a whole clip and for its chunks.

Every layer takes `past`, what it remembers of the frames before, and returns it
renewed beside its result; None is the start of a clip:

    y_1, past = layer(x_1, None)      y_2, past = layer(x_2, past)      [y_1 y_2] = layer([x_1 x_2], None)

Convolutions see zeros before the clip. The first frame of a clip passes every
change of frame rate untouched, so that 1 + 2n frames become 1 + n and back.

Letters: B clips, T U S frames, H W h w pixels, C channels, O output channels.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from wallwm_jax.models.attention import attend
from wallwm_jax.models.layers import named, scaled

Past = Any
"""A tree of arrays: the frames that a layer, or each of its parts, still needs; None before any."""

THIN = 16
"""Up to so many input channels, one wide convolution on a CPU is faster than three thin ones."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One resolution of a codec.

    Attributes:
      inputs, width: channels that come in and that its blocks have.
      blocks: number of residual blocks.
      space, time: whether it halves (or doubles) the picture, and the frame rate.
      residual: whether a parameter-free path goes around it (Wan2.2).
    """

    inputs: int
    width: int
    blocks: int
    space: bool
    time: bool
    residual: bool


def chain(
    layers: Sequence[Callable[[Array, Past], tuple[Array, Past]]],
    x: Float[Array, "B T H W C"],
    past: Past,
) -> tuple[Float[Array, "B U h w O"], Past]:
    """Runs layers one after the other; their pasts are a tuple."""
    kept = []
    for layer, before in zip(layers, past or (None,) * len(layers), strict=True):
        x, after = layer(x, before)
        kept.append(after)
    return x, tuple(kept)


def _kernel_and_bias(module: nn.Module, *shape: int) -> tuple[Array, Array]:
    """A layer's parameters in its compute dtype."""
    # No axis has a name: a codec is frozen and small beside the towers, and its
    # channel counts (3, 12, 160) divide by no mesh, so every device holds it whole.
    kernel_init = named(scaled(1.0), *(None,) * len(shape))
    bias_init = named(nn.initializers.zeros_init(), None)
    kernel = module.param("kernel", kernel_init, shape, module.param_dtype)
    bias = module.param("bias", bias_init, shape[-1:], module.param_dtype)
    return kernel.astype(module.dtype), bias.astype(module.dtype)


def _picture_conv(x: Array, kernel: Array, stride: int = 1) -> Array:
    """3x3 convolution of pictures [N, H, W, C]; a stride of 2 looks right and down only."""
    sides = (1, 1) if stride == 1 else (0, 1)
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), (sides, sides), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def conv_whole(
    x: Float[Array, "B S H W C"], kernel: Float[Array, "3 3 3 C O"]
) -> Float[Array, "B T H W O"]:
    """3x3x3 convolution, padded in space, whole windows in time: T = S - 2."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1, 1),
        ((0, 0), (1, 1), (1, 1)),
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )


def conv_by_pictures(
    x: Float[Array, "B S H W C"], kernel: Float[Array, "3 3 3 C O"]
) -> Float[Array, "B T H W O"]:
    """`conv_whole` as 2-D convolutions: on a CPU, XLA's run at up to thrice the 3-D speed."""
    count, frames = x.shape[0], x.shape[1] - 2
    taps = [rearrange(x[:, k : k + frames], "b t h w c -> (b t) h w c") for k in range(3)]
    if x.shape[-1] <= THIN:
        wide = rearrange(kernel, "t h w c o -> h w (t c) o")
        y = _picture_conv(jnp.concatenate(taps, axis=-1), wide)
    else:
        y = sum(_picture_conv(tap, kernel[k]) for k, tap in enumerate(taps))
    return rearrange(y, "(b t) h w o -> b t h w o", b=count)


class CausalConv(nn.Module):
    """3x3x3 convolution that looks two frames back."""

    features: int
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H W C"], past: Past = None
    ) -> tuple[Float[Array, "B T H W O"], Past]:
        kernel, bias = _kernel_and_bias(self, 3, 3, 3, x.shape[-1], self.features)
        if past is None:
            past = jnp.zeros((x.shape[0], 2, *x.shape[2:]), x.dtype)
        x = jnp.concatenate([past, x], axis=1)
        y = jax.lax.platform_dependent(x, kernel, cpu=conv_by_pictures, default=conv_whole)
        return y + bias, x[:, -2:]


class TimeConv(nn.Module):
    """Convolution over windows of three frames, pixel by pixel; only whole windows."""

    features: int
    stride: int = 1
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B S H W C"]) -> Float[Array, "B T H W O"]:
        kernel, bias = _kernel_and_bias(self, 3, x.shape[-1], self.features)
        windows = max(0, (x.shape[1] - 3) // self.stride + 1)
        taps = [x[:, k : k + self.stride * windows : self.stride] for k in range(3)]
        return (
            sum(jnp.einsum("bthwc,co->bthwo", tap, kernel[k]) for k, tap in enumerate(taps)) + bias
        )


class PictureConv(nn.Module):
    """3x3 convolution of every frame for itself."""

    features: int
    stride: int = 1
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T h w O"]:
        kernel, bias = _kernel_and_bias(self, 3, 3, x.shape[-1], self.features)
        y = _picture_conv(rearrange(x, "b t h w c -> (b t) h w c"), kernel, self.stride)
        return rearrange(y, "(b t) h w o -> b t h w o", b=x.shape[0]) + bias


class ChannelNorm(nn.Module):
    """Root-mean-square norm over channels with a learned scale, in float32."""

    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
        scale = self.param(
            "scale", named(nn.initializers.ones_init(), None), x.shape[-1:], self.param_dtype
        )
        y = x.astype(jnp.float32)
        # Wan bounds the vector's length by 1e-12 instead of adding an epsilon.
        power = jnp.maximum(jnp.mean(jnp.square(y), axis=-1, keepdims=True), 1e-24 / x.shape[-1])
        return (y * jax.lax.rsqrt(power) * scale).astype(x.dtype)


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice, around a shortcut."""

    features: int
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H W C"], past: Past = None
    ) -> tuple[Float[Array, "B T H W O"], Past]:
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        first, second = past or (None, None)
        y = nn.silu(ChannelNorm(self.param_dtype, name="norm1")(x))
        y, first = CausalConv(self.features, name="conv1", **dtypes)(y, first)
        y = nn.silu(ChannelNorm(self.param_dtype, name="norm2")(y))
        y, second = CausalConv(self.features, name="conv2", **dtypes)(y, second)
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, name="shortcut", **dtypes)(x)
        return x + y, (first, second)


class FrameAttention(nn.Module):
    """One head of attention among the pixels of each frame."""

    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H W C"], past: Past = None
    ) -> tuple[Float[Array, "B T H W C"], Past]:
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        size = dict(b=x.shape[0], h=x.shape[2])
        y = ChannelNorm(self.param_dtype, name="norm")(x)
        y = nn.Dense(3 * x.shape[-1], name="qkv", **dtypes)(y)
        # A head as wide as the codec (384 channels and more) fits no fused kernel.
        y = attend(*rearrange(y, "b t h w (three c) -> three (b t) (h w) 1 c", three=3))
        y = rearrange(y, "(b t) (h w) 1 c -> b t h w c", **size)
        return x + nn.Dense(x.shape[-1], name="out", **dtypes)(y), None


class Downsample(nn.Module):
    """Halves the picture, and with `time` the frame rate after the first frame."""

    time: bool
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H W C"], past: Past = None
    ) -> tuple[Float[Array, "B U h w C"], Past]:
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = PictureConv(x.shape[-1], stride=2, name="space", **dtypes)(x)
        if not self.time:
            return x, None
        # The first frame is a result and also opens the first window: (0 1 2), (2 3 4), ...
        ready, run = (x[:, :1], x) if past is None else (x[:, :0], jnp.concatenate([past, x], 1))
        y = TimeConv(x.shape[-1], stride=2, name="time", **dtypes)(run)
        return jnp.concatenate([ready, y], axis=1), x[:, -1:]


class Upsample(nn.Module):
    """Doubles the picture, and with `time` the frame rate after the first frame."""

    features: int
    time: bool
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H W C"], past: Past = None
    ) -> tuple[Float[Array, "B U h w O"], Past]:
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        if self.time:
            # Unlike elsewhere the first frame is not even seen: the second starts from zeros.
            ready = x[:, : 1 if past is None else 0]
            if past is None:
                past = jnp.zeros((x.shape[0], 2, *x.shape[2:]), x.dtype)
            run = jnp.concatenate([past, x[:, ready.shape[1] :]], axis=1)
            y = TimeConv(2 * x.shape[-1], name="time", **dtypes)(run)
            y = rearrange(y, "b t h w (two c) -> b (t two) h w c", two=2)
            x, past = jnp.concatenate([ready, y], axis=1), run[:, -2:]
        x = jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3)
        return PictureConv(self.features, name="space", **dtypes)(x), past


def average_down(
    x: Float[Array, "B T H W C"], features: int, time: int, space: int
) -> Float[Array, "B U h w O"]:
    """The way around a stage of the encoder: blocks of pixels become channels, then means.

    An odd number of frames gets a frame of zeros in front.

    Args:
      x: what enters the stage.
      features: channels O that leave it; it divides C * time * space**2.
      time, space: lengths of a block.
    """
    x = jnp.pad(x, ((0, 0), (-x.shape[1] % time, 0), (0, 0), (0, 0), (0, 0)))
    x = rearrange(x, "b (t u) (h p) (w q) c -> b t h w (c u p q)", u=time, p=space, q=space)
    return jnp.mean(rearrange(x, "b t h w (o m) -> b t h w o m", o=features), axis=-1)


def repeat_up(
    x: Float[Array, "B T H W C"], features: int, time: int, space: int, first: bool
) -> Float[Array, "B U h w O"]:
    """The way around a stage of the decoder: repeated channels become blocks of pixels.

    Args:
      x: what enters the stage.
      features: channels O that leave it; C divides O * time * space**2.
      time, space: lengths of a block.
      first: whether `x` opens a clip, whose first frame stays one frame.
    """
    x = jnp.repeat(x, features * time * space**2 // x.shape[-1], axis=-1)
    x = rearrange(x, "b t h w (c u p q) -> b (t u) (h p) (w q) c", u=time, p=space, q=space)
    return x[:, time - 1 :] if first else x


class DownStage(nn.Module):
    """A stage of the encoder."""

    stage: Stage
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H W C"], past: Past = None
    ) -> tuple[Float[Array, "B U h w O"], Past]:
        s, dtypes = self.stage, dict(dtype=self.dtype, param_dtype=self.param_dtype)
        layers = [ResidualBlock(s.width, name=f"block_{b}", **dtypes) for b in range(s.blocks)]
        if s.space:
            layers.append(Downsample(s.time, name="resample", **dtypes))
        y, past = chain(layers, x, past)
        if s.residual:
            y = y + average_down(x, s.width, 1 + s.time, 1 + s.space)
        return y, past


class UpStage(nn.Module):
    """A stage of the decoder; without the way around it, doubling the picture halves the width."""

    stage: Stage
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H W C"], past: Past = None
    ) -> tuple[Float[Array, "B U h w O"], Past]:
        s, dtypes = self.stage, dict(dtype=self.dtype, param_dtype=self.param_dtype)
        layers = [ResidualBlock(s.width, name=f"block_{b}", **dtypes) for b in range(s.blocks)]
        if s.space:
            width = s.width if s.residual else s.width // 2
            layers.append(Upsample(width, s.time, name="resample", **dtypes))
        y, kept = chain(layers, x, past)
        if s.residual and s.space:
            y = y + repeat_up(x, s.width, 1 + s.time, 2, first=past is None)
        return y, kept


class Head(nn.Module):
    """Norm, SiLU and the last convolution."""

    features: int
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H W C"], past: Past = None
    ) -> tuple[Float[Array, "B T H W O"], Past]:
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        y = nn.silu(ChannelNorm(self.param_dtype, name="norm")(x))
        return CausalConv(self.features, name="conv", **dtypes)(y, past)
