"""The umT5 text encoder: T5 with a relative-position bias in every layer.

    x += Attn(RMS(x)) + bias_l(position difference)      no scaling, no biases
    x += W_o(gelu(W_0 RMS(x)) * W_1 RMS(x))

Frozen in every stage. Letters: B captions, L tokens, D width, N heads,
H head dimension.
"""

import dataclasses
import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Int32

from wallwm_jax.models.gathering import gathering
from wallwm_jax.models.layers import RMSNorm, dense, named, scaled


@dataclasses.dataclass(frozen=True, kw_only=True)
class UMT5Config:
    """Sizes of a umT5 encoder; `UMT5_SIZES` names the usual ones.

    Attributes:
      vocabulary, width, heads, head_dim, layers, ffn: of the transformer;
        heads * head_dim need not be the width.
      buckets, max_distance: of the relative positions.
      eps: of every norm.
      embedding_scale, residual_scale: of the initialisation only.
      dtype, param_dtype: of activations and of parameters; norms, their
        scales, position biases and the softmax are float32 whatever these say.
    """

    vocabulary: int
    width: int
    heads: int
    head_dim: int
    layers: int
    ffn: int
    buckets: int = 32
    max_distance: int = 128
    eps: float = 1e-6
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    dtype: str = "float32"
    param_dtype: str = "float32"

    @property
    def dtypes(self) -> dict[str, jnp.dtype]:
        """Compute and parameter dtype, as Linen modules take them."""
        return dict(dtype=jnp.dtype(self.dtype), param_dtype=jnp.dtype(self.param_dtype))


UMT5_SIZES: dict[str, dict[str, int]] = {
    "tiny": dict(vocabulary=256, width=64, heads=4, head_dim=16, layers=2, ffn=128),
    "xxl": dict(vocabulary=256384, width=4096, heads=64, head_dim=64, layers=24, ffn=10240),
}


def relative_bucket(
    distance: Int[Array | np.ndarray, "*L"], buckets: int, max_distance: int
) -> Int32[np.ndarray, "*L"]:
    """T5's bidirectional bucket of key minus query position.

    Half of the buckets for each sign; small distances have their own bucket,
    larger ones share logarithmically up to `max_distance`.

    Computed by numpy, once per traced length: the logarithm of a distance that
    falls on an edge must round as it did where the weights were trained, so
    it is the nearest float32 and not what each device makes of it.

    Raises:
      ValueError: too few buckets, or a reach that the exact ones cover already.
    """
    half = buckets // 2
    exact = half // 2
    if exact < 1 or max_distance <= exact:
        raise ValueError(
            f"{buckets} buckets up to distance {max_distance} make no relative positions; "
            "use at least 4 buckets and a distance above a quarter of their number"
        )
    size = np.abs(np.asarray(distance))
    ratio = (np.maximum(size, 1).astype(np.float32) / np.float32(exact)).astype(np.float64)
    ratio = np.log(ratio).astype(np.float32) / np.float32(math.log(max_distance / exact))
    far = exact + (ratio * np.float32(half - exact)).astype(np.int32)
    near = np.where(size < exact, size, np.minimum(far, half - 1))
    return (np.where(np.asarray(distance) > 0, half, 0) + near).astype(np.int32)


class UMT5Layer(nn.Module):
    """Self-attention with its own position bias, then a gated FFN."""

    config: UMT5Config

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L D"], mask: Bool[Array, "B L"], bucket: Int[Array, "L L"]
    ) -> tuple[Float[Array, "B L D"], None]:
        c = self.config
        heads = lambda name: nn.DenseGeneral(  # noqa: E731
            (c.heads, c.head_dim),
            use_bias=False,
            name=name,
            kernel_init=named(scaled(1.0 / c.head_dim**0.5), "embed", "heads", "head_dim"),
            promote_dtype=gathering("embed", "heads", "head_dim"),
            **c.dtypes,
        )
        x = nn.with_logical_constraint(x, ("batch", "tokens", "embed_act"))
        y = RMSNorm(name="attention_norm", eps=c.eps)(x)
        bias = self.param(
            "position_bias", named(nn.initializers.normal(0.5), None, "heads"), (c.buckets, c.heads)
        )
        logits = jnp.einsum(
            "blnh,bmnh->bnlm",
            heads("query")(y),
            heads("key")(y),
            preferred_element_type=jnp.float32,
        )
        logits = logits + jnp.moveaxis(bias[bucket], -1, 0)
        logits = jnp.where(mask[:, None, None], logits, jnp.finfo(jnp.float32).min)
        weights = nn.softmax(logits, axis=-1).astype(x.dtype)
        y = jnp.einsum("bnlm,bmnh->blnh", weights, heads("value")(y))
        x = x + nn.DenseGeneral(
            c.width,
            axis=(-2, -1),
            use_bias=False,
            name="out",
            kernel_init=named(scaled(c.residual_scale), "heads", "head_dim", "embed"),
            promote_dtype=gathering("heads", "head_dim", "embed"),
            **c.dtypes,
        )(y)
        y = RMSNorm(name="ffn_norm", eps=c.eps)(x)
        linear = lambda name, size, axes, scale=1.0: dense(  # noqa: E731
            size, axes, scale, use_bias=False, name=name, **c.dtypes
        )
        gated = nn.gelu(linear("gate", c.ffn, ("embed", "mlp"))(y), approximate=True)
        y = gated * linear("up", c.ffn, ("embed", "mlp"))(y)
        return x + linear("down", c.width, ("mlp", "embed"), c.residual_scale)(y), None


class UMT5Encoder(nn.Module):
    """Token ids to features, as transformers' `UMT5EncoderModel` gives them."""

    config: UMT5Config

    @nn.compact
    def __call__(
        self,
        token_ids: Int[ArrayLike, "B L"],
        mask: Bool[ArrayLike, "B L"] | Int[ArrayLike, "B L"],
    ) -> Float[Array, "B L D"]:
        """Encodes captions.

        Args:
          token_ids: padded to one length.
          mask: True (or not 0) for tokens. No position attends to the others;
            what stands at those is computed like any query and carries no
            meaning (Wan's pipeline puts zeros there).
        """
        c = self.config
        token_ids, mask = jnp.asarray(token_ids), jnp.asarray(mask)
        # Ids travel to the slices of the table, and the slices of the rows back.
        token_ids = nn.with_logical_constraint(token_ids, ("lookup", "tokens"))
        x = nn.Embed(
            c.vocabulary,
            c.width,
            name="embedding",
            embedding_init=named(nn.initializers.normal(c.embedding_scale), "vocabulary", "embed"),
            **c.dtypes,
        )(token_ids)
        x = nn.with_logical_constraint(x, ("lookup", "tokens", "embed"))
        x = nn.with_logical_constraint(x, ("batch", "tokens", "embed_act"))
        place = np.arange(token_ids.shape[1])
        bucket = relative_bucket(place[None] - place[:, None], c.buckets, c.max_distance)
        x, _ = nn.scan(
            UMT5Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=c.layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(c, name="layers")(x, mask != 0, jnp.asarray(bucket))
        return RMSNorm(name="norm", eps=c.eps)(x)
