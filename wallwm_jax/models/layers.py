"""Small layers shared by the towers.

Letters: B batch, T S tokens, D width, N heads, H head dimension.

Every parameter carries logical axis names ("embed", "heads", "head_dim",
"mlp", ...); which mesh axis a name lands on is decided in `parallel`, in one
table. Normalisation runs in float32 whatever the compute dtype.
"""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num, Shaped

from wallwm_jax.models.attention import attend
from wallwm_jax.models.gathering import gathering
from wallwm_jax.models.remat import keep
from wallwm_jax.models.rope import rotate

Initializer = nn.initializers.Initializer


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """What every tower's sizes and runtime choices have in common.

    Attributes:
      width, heads, layers, ffn: of the transformer.
      remat: name of a policy, see `remat.POLICIES`.
      unroll: blocks per iteration of the scan over layers; more compile
        longer and run faster on a CPU.
      attention: implementation, see `attention.IMPLEMENTATIONS`.
      dtype, param_dtype: of activations and of parameters.
      eps: of the normalisations.
    """

    width: int
    heads: int
    layers: int
    ffn: int
    frequency_width: int = 256
    remat: str = "none"
    unroll: int = 1
    attention: str = "auto"
    dtype: str = "float32"
    param_dtype: str = "float32"
    eps: float = 1e-6

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.width // self.heads

    @property
    def dtypes(self) -> dict[str, jnp.dtype]:
        """Compute and parameter dtype, as Linen modules take them."""
        return dict(dtype=jnp.dtype(self.dtype), param_dtype=jnp.dtype(self.param_dtype))


def stacked(block: type[nn.Module], config: TowerConfig, in_axes: Any = nn.broadcast) -> nn.Module:
    """`config.layers` blocks in a row, compiled once; their parameters have a leading axis.

    Args:
      block: called as (carry, *inputs) -> (carry, output).
      config: handed to every block.
      in_axes: per input: an axis that counts layers, or `nn.broadcast`.
    """
    scanned = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=in_axes,
        length=config.layers,
        unroll=config.unroll,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return scanned(config)


class Named(nn.LogicallyPartitioned):
    """A parameter and its logical axis names, for `parallel` to place.

    Flax would also constrain it to that place wherever it is read, already
    while `DenseGeneral` still holds its kernel flat; that fails under a mesh.
    """

    def unbox(self, apply_constraint: bool = False) -> Any:
        """The bare parameter."""
        return self.value


def named(init: Initializer, *axes: str | None) -> Initializer:
    """An initialiser whose parameter remembers its logical axis names."""
    return lambda *args: Named(init(*args), axes)


def scaled(scale: float) -> Initializer:
    """Variance-scaling (fan-in) normal; `scale` multiplies the variance."""
    if scale == 0.0:
        return nn.initializers.zeros_init()
    return nn.initializers.variance_scaling(scale, "fan_in", "normal")


def sinusoid(positions: Num[Array, "*T"], width: int) -> Float[Array, "*T width"]:
    """Sinusoidal features, cosine half first (Wan's timestep embedding)."""
    half = width // 2
    # At a timestep of 1000 the last bit of a frequency shows in the cosine. Public
    # models have the exponent rounded to float32; XLA's exp would add its own error.
    exponent = np.float32(-math.log(10000)) * np.arange(half, dtype=np.float32) / np.float32(half)
    bank = np.exp(exponent.astype(np.float64)).astype(np.float32)
    angles = positions.astype(jnp.float32)[..., None] * bank
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def spread(
    per_event: Shaped[Array, "B E *rest"], segment: Int[Array, "B T"]
) -> Shaped[Array, "B T *rest"]:
    """Gives every token its event's value; padding tokens (segment 0) get zeros."""
    index = jnp.maximum(segment - 1, 0)
    index = index.reshape(*index.shape, *[1] * (per_event.ndim - 2))
    values = jnp.take_along_axis(per_event, index, axis=1)
    keep = (segment > 0).reshape(index.shape)
    return jnp.where(keep, values, jnp.zeros((), values.dtype))


def layer_norm(x: Float[Array, "*B D"], eps: float = 1e-6) -> Float[Array, "*B D"]:
    """LayerNorm without parameters, in float32."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    return y.astype(x.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale over the last `axes` axes."""

    axes: tuple[str, ...] = ("embed",)
    eps: float = 1e-6
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*B"]) -> Float[Array, "*B"]:
        shape = x.shape[-len(self.axes) :]
        over = tuple(range(-len(self.axes), 0))
        scale = self.param(
            "scale", named(nn.initializers.ones_init(), *self.axes), shape, self.param_dtype
        )
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=over, keepdims=True) + self.eps)
        return (y * scale).astype(x.dtype)


def dense(
    features: int,
    axes: tuple[str, str] = ("embed", "mlp"),
    scale: float = 1.0,
    *,
    use_bias: bool = True,
    dtype: jnp.dtype = jnp.float32,
    param_dtype: jnp.dtype = jnp.float32,
    name: str | None = None,
) -> nn.Dense:
    """A linear map on the last axis whose kernel axes have logical names."""
    return nn.Dense(
        features,
        use_bias=use_bias,
        dtype=dtype,
        param_dtype=param_dtype,
        kernel_init=named(scaled(scale), *axes),
        bias_init=named(nn.initializers.zeros_init(), axes[-1]),
        promote_dtype=gathering(*axes),
        name=name,
    )


class HeadProjection(nn.Module):
    """Linear map to heads, [.., D] -> [.., N, H], with Wan's norm over all heads."""

    heads: int
    head_dim: int
    norm: bool = False
    label: str = "projected"  # what the result is to `remat`, before the norm
    eps: float = 1e-6
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B N H"]:
        y = nn.DenseGeneral(
            (self.heads, self.head_dim),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=named(scaled(1.0), "embed", "heads", "head_dim"),
            bias_init=named(nn.initializers.zeros_init(), "heads", "head_dim"),
            promote_dtype=gathering("embed", "heads", "head_dim"),
            name="linear",
        )(x)
        y = keep(y, self.label)
        if not self.norm:
            return y
        return RMSNorm(
            axes=("heads", "head_dim"), eps=self.eps, param_dtype=self.param_dtype, name="norm"
        )(y)


class MultiHeadAttention(nn.Module):
    """Projections around the attention door; queries and keys are RMS-normed.

    `read` stands alone so that keys and values can be projected once, elsewhere,
    and read many times (the per-layer cache of the action tower).
    """

    heads: int
    head_dim: int
    width: int
    out_scale: float = 1.0
    eps: float = 1e-6
    kind: str = "self"  # first half of the names its values have in `remat`
    frames_in: str = ""  # which operands carry frames, see `sequence_parallel`
    implementation: str = "auto"
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        head = functools.partial(
            HeadProjection, self.heads, self.head_dim, label=f"{self.kind}/projected", **dtypes
        )
        self.query, self.key = head(norm=True, eps=self.eps), head(norm=True, eps=self.eps)
        self.value = head()
        self.out = nn.DenseGeneral(
            self.width,
            axis=(-2, -1),
            kernel_init=named(scaled(self.out_scale), "heads", "head_dim", "embed"),
            bias_init=named(nn.initializers.zeros_init(), "embed"),
            promote_dtype=gathering("heads", "head_dim", "embed"),
            **dtypes,
        )

    def __call__(
        self,
        x: Float[Array, "B T D"],
        context: Float[Array, "B S Dc"],
        *,
        angles: Float[Array, "B T P"] | None = None,
        segments: tuple[Int[Array, "B T"], Int[Array, "B S"]] | None = None,
        mask: Bool[Array, "B 1 T S"] | None = None,
    ) -> Float[Array, "B T width"]:
        """Attends from `x` to `context`; `angles` turn queries and keys alike."""
        key, value = self.key(context), self.value(context)
        if angles is not None:
            key = rotate(key, angles)
        return self.read(x, key, value, angles=angles, segments=segments, mask=mask)

    def project_query(
        self, x: Float[Array, "B T D"], angles: Float[Array, "B T P"] | None = None
    ) -> Float[Array, "B T N H"]:
        """Queries, turned by `angles`."""
        query = self.query(x)
        return query if angles is None else rotate(query, angles)

    def read(
        self,
        x: Float[Array, "B T D"],
        key: Float[Array, "B S N H"],
        value: Float[Array, "B S N H"],
        *,
        angles: Float[Array, "B T P"] | None = None,
        segments: tuple[Int[Array, "B T"], Int[Array, "B S"]] | None = None,
        mask: Bool[Array, "B 1 T S"] | None = None,
    ) -> Float[Array, "B T width"]:
        """Attends from `x` to keys and values that were projected before."""
        query = self.project_query(x, angles)
        values = attend(query, key, value, segments=segments, mask=mask, **self.door())
        return self.out(values)

    def door(self) -> dict[str, str]:
        """What `attend` is told besides its operands."""
        return dict(
            frames_in=self.frames_in,
            implementation=self.implementation,
            site="/".join(self.path),
            label=f"{self.kind}/attended",
        )


class FeedForward(nn.Module):
    """Two linear maps around a tanh-approximated GELU (Wan's FFN)."""

    hidden: int
    width: int
    out_scale: float = 1.0
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B width"]:
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        y = keep(dense(self.hidden, ("embed", "mlp"), name="up", **dtypes)(x), "ffn/hidden")
        y = nn.gelu(y, approximate=True)
        y = dense(self.width, ("mlp", "embed"), self.out_scale, name="down", **dtypes)(y)
        return keep(y, "ffn/out")
