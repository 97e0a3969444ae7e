"""The Wan video diffusion transformer, the tower we inherit.

    x = patchify(z_t)                                   (pt, ph, pw) patches
    for each block:
        x += gate1 * SelfAttn(mod1(LN(x)))              3-D RoPE over (f, h, w)
        x += CrossAttn(LN(x), text)
        x += gate2 * FFN(mod2(LN(x)))
    v = unpatchify(mod_out(LN(x)))

`mod(y) = y * (1 + scale) + shift`; shift, scale and gate are the sum of one
shared projection of the time embedding and a per-block table (adaLN).

Letters: B batch, V views riding along (1 in Wan itself), F latent frames,
h w token grid, S = h*w tokens of a frame, D width, L text tokens. The time
embedding has one row per token, frame or sample: [B, F|1, S|1, D].
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from wallwm_jax.models.layers import (
    FeedForward,
    MultiHeadAttention,
    TowerConfig,
    dense,
    layer_norm,
    named,
    sinusoid,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WanConfig(TowerConfig):
    """Sizes of a Wan DiT; the named sizes are in `WAN_SIZES`.

    Attributes:
      gate_bias: added to the residual gates' table at initialisation. 0 is
        Wan's own; 1 lets a tower that is trained from scratch learn from the
        first step (a small budget, no inherited weights).
    """

    in_channels: int
    out_channels: int
    text_width: int
    patch: tuple[int, int, int] = (1, 2, 2)
    gate_bias: float = 0.0


WAN_SIZES: dict[str, dict[str, int]] = {
    "tiny": dict(
        width=96, heads=4, layers=4, ffn=384, in_channels=16, out_channels=16, text_width=64
    ),
    "wan2.1-t2v-1.3b": dict(
        width=1536, heads=12, layers=30, ffn=8960, in_channels=16, out_channels=16, text_width=4096
    ),
    "wan2.1-t2v-14b": dict(
        width=5120, heads=40, layers=40, ffn=13824, in_channels=16, out_channels=16, text_width=4096
    ),
    "wan2.2-ti2v-5b": dict(
        width=3072, heads=24, layers=30, ffn=14336, in_channels=48, out_channels=48, text_width=4096
    ),
}
"""Published sizes (method section 2), and the one that trains on two CPU cores."""

REMAT_POLICIES = ("none", "full", "dots")


def rematerialised(block: type[nn.Module], policy: str) -> type[nn.Module]:
    """Wraps a block so that its activations are recomputed in the backward pass.

    Raises:
      ValueError: for a policy that is not in REMAT_POLICIES.
    """
    if policy not in REMAT_POLICIES:
        raise ValueError(f"remat policy {policy!r} is unknown; use one of {REMAT_POLICIES}")
    if policy == "none":
        return block
    saved = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if policy == "dots" else None
    return nn.remat(block, policy=saved, prevent_cse=False)


def table_init(gates: tuple[int, ...], bias: float) -> nn.initializers.Initializer:
    """Wan's modulation table, N(0, 1/D), plus `bias` on the rows in `gates`."""

    def init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
        table = nn.initializers.normal(shape[-1] ** -0.5)(key, shape, dtype)
        return table.at[..., list(gates), :].add(bias) if gates else table

    return init


def modulate(
    x: Float[Array, "B V F S D"], shift: Float[Array, "B 1 f s D"], scale: Float[Array, "B 1 f s D"]
) -> Float[Array, "B V F S D"]:
    """adaLN: normalise without parameters, then scale and shift by the time."""
    return (layer_norm(x) * (1 + scale) + shift).astype(x.dtype)


class WanEmbedding(nn.Module):
    """Patches, time and text brought to the tower's width."""

    config: WanConfig
    duration: bool = False

    def setup(self) -> None:
        c = self.config
        self.patches = dense(c.width, ("patch", "embed"), **c.dtypes)
        self.time_in = dense(c.width, ("frequency", "embed"), **c.dtypes)
        self.time_out = dense(c.width, ("embed", "embed_out"), **c.dtypes)
        self.time_modulation = dense(6 * c.width, ("embed", "modulation"), **c.dtypes)
        self.text_in = dense(c.width, ("text", "embed"), **c.dtypes)
        self.text_out = dense(c.width, ("embed", "embed_out"), **c.dtypes)
        if self.duration:
            # Zero-initialised: inherited weights give the same numbers with it.
            self.duration_in = dense(c.width, ("frequency", "embed"), scale=0.0, **c.dtypes)

    def latents(self, z: Float[Array, "B V F H W C"]) -> Float[Array, "B V f S D"]:
        """Patchifies; inside a patch the order is (C, pt, ph, pw), as in Wan's convolution."""
        pt, ph, pw = self.config.patch
        x = rearrange(
            z, "b v (f pt) (h ph) (w pw) c -> b v f (h w) (c pt ph pw)", pt=pt, ph=ph, pw=pw
        )
        return self.patches(x)

    def time(
        self, timestep: Float[Array, "B f s"], duration: Float[Array, "B f s"] | None = None
    ) -> tuple[Float[Array, "B f s D"], Float[Array, "B f s 6 D"]]:
        """Time embedding and its shared six-way projection.

        Args:
          timestep: sigma * 1000 per token, frame or sample.
          duration: length of the event in control steps. Where it enters is
            open in the sources; here it joins the time embedding.
        """
        c = self.config
        hidden = self.time_in(sinusoid(timestep, c.frequency_width).astype(c.dtype))
        if self.duration and duration is not None:
            hidden = hidden + self.duration_in(
                sinusoid(duration, c.frequency_width).astype(c.dtype)
            )
        embedding = self.time_out(nn.silu(hidden))
        modulation = self.time_modulation(nn.silu(embedding))
        return embedding, rearrange(modulation, "b f s (six d) -> b f s six d", six=6)

    def text(self, features: Float[Array, "B L Dt"]) -> Float[Array, "B L D"]:
        """Projects the text encoder's features."""
        return self.text_out(nn.gelu(self.text_in(features), approximate=True))


class WanBlock(nn.Module):
    """One block, its three steps callable one by one so that a graft fits between."""

    config: WanConfig

    def setup(self) -> None:
        c = self.config
        attention = dict(
            heads=c.heads,
            head_dim=c.head_dim,
            width=c.width,
            implementation=c.attention,
            **c.dtypes,
        )
        self.table = self.param(
            "table",
            named(table_init((2, 5), c.gate_bias), None, "embed"),
            (6, c.width),
            jnp.dtype(c.param_dtype),
        )
        self.self_attention = MultiHeadAttention(**attention)
        self.text_norm = nn.LayerNorm(
            epsilon=1e-6,
            dtype=jnp.float32,
            scale_init=named(nn.initializers.ones_init(), "embed"),
            bias_init=named(nn.initializers.zeros_init(), "embed"),
        )
        self.text_attention = MultiHeadAttention(**attention)
        self.ffn = FeedForward(c.ffn, c.width, **c.dtypes)

    def modulation(self, time: Float[Array, "B f s 6 D"]) -> list[Float[Array, "B 1 f s D"]]:
        """shift, scale, gate of the self-attention, then of the FFN."""
        rows = jnp.moveaxis(time + self.table, -2, 0)[:, :, None]
        return list(rows)

    def self_attend(
        self,
        x: Float[Array, "B V F S D"],
        modulation: list[Array],
        angles: Float[Array, "B F S P"],
        segment: Int[Array, "B F"],
    ) -> Float[Array, "B V F S D"]:
        """Attention inside each view: views ride the batch axis."""
        shift, scale, gate = modulation[:3]
        views, frames, tokens = x.shape[1:4]
        y = rearrange(modulate(x, shift, scale), "b v f s d -> (b v) (f s) d")
        turn = jnp.repeat(rearrange(angles, "b f s p -> b (f s) p"), views, axis=0)
        ids = jnp.repeat(jnp.repeat(segment, tokens, axis=1), views, axis=0)
        y = self.self_attention(y, y, angles=turn, segments=(ids, ids))
        return x + gate.astype(x.dtype) * rearrange(
            y, "(b v) (f s) d -> b v f s d", v=views, f=frames
        )

    def read_text(
        self,
        x: Float[Array, "B V F S D"],
        text: Float[Array, "B L D"],
        segments: tuple[Int[Array, "B F"], Int[Array, "B L"]],
    ) -> Float[Array, "B V F S D"]:
        """Cross-attention: every token reads the caption of its own event."""
        views, frames, tokens = x.shape[1:4]
        y = rearrange(self.text_norm(x).astype(x.dtype), "b v f s d -> b (v f s) d")
        ids = jnp.tile(jnp.repeat(segments[0], tokens, axis=1), (1, views))
        y = self.text_attention(y, text, segments=(ids, segments[1]))
        return x + rearrange(y, "b (v f s) d -> b v f s d", v=views, f=frames)

    def feed_forward(
        self, x: Float[Array, "B V F S D"], modulation: list[Array]
    ) -> Float[Array, "B V F S D"]:
        """The FFN, token by token."""
        shift, scale, gate = modulation[3:]
        return x + gate.astype(x.dtype) * self.ffn(modulate(x, shift, scale))


class WanHead(nn.Module):
    """Final modulation, projection to patches, and unpatchify."""

    config: WanConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B V f S D"],
        embedding: Float[Array, "B t s D"],
        grid: tuple[int, int],
    ) -> Float[Array, "B V F H W C"]:
        c = self.config
        table = self.param(
            "table",
            named(table_init((), 0.0), None, "embed"),
            (2, c.width),
            jnp.dtype(c.param_dtype),
        )
        shift, scale = embedding[:, None] + table[0], embedding[:, None] + table[1]
        pt, ph, pw = c.patch
        y = dense(c.out_channels * pt * ph * pw, ("embed", "patch"), name="out", **c.dtypes)(
            modulate(x, shift, scale)
        )
        return rearrange(
            y,
            "b v f (h w) (pt ph pw c) -> b v (f pt) (h ph) (w pw) c",
            h=grid[0],
            w=grid[1],
            pt=pt,
            ph=ph,
            pw=pw,
        )
