"""The Wan video diffusion transformer, the tower we inherit.

    x = patchify(z_t)                                   (pt, ph, pw) patches
    for each block:
        x += gate1 * SelfAttn(mod1(LN(x)))              3-D RoPE over (f, h, w)
        x += CrossAttn(LN(x), text [, picture])
        x += gate2 * FFN(mod2(LN(x)))
    v = unpatchify(mod_out(LN(x)))

`mod(y) = y * (1 + scale) + shift`; shift, scale and gate are the sum of one
shared projection of the time embedding and a per-block table (adaLN). The time
path and all norms run in float32 whatever the compute dtype, as in Wan.

`WanDiT` is Wan itself: one view, one caption, no packing. `video_tower` puts
the same three parts (embedding, block, head) to work on several views.

Letters: B batch, V views riding along (1 in Wan itself), F latent frames,
h w token grid, S = h*w tokens of a frame, D width, L text tokens, I picture
tokens. The time embedding has one row per token, frame or sample:
[B, F|1, S|1, D].
"""

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, ArrayLike, Float, Int, Num

from wallwm_jax.models.attention import attend
from wallwm_jax.models.layers import (
    FeedForward,
    HeadProjection,
    MultiHeadAttention,
    dense,
    layer_norm,
    named,
    sinusoid,
    stacked,
)
from wallwm_jax.models.remat import rematerialised
from wallwm_jax.models.rope import grid_angles
from wallwm_jax.models.sequence_parallel import merge_tokens, refuse_uneven_frames, split_tokens
from wallwm_jax.models.wan_config import WanConfig


def table_init(gates: tuple[int, ...], bias: float) -> nn.initializers.Initializer:
    """Wan's modulation table, N(0, 1/D), plus `bias` on the rows in `gates`."""

    def init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
        table = nn.initializers.normal(shape[-1] ** -0.5)(key, shape, dtype)
        return table.at[..., list(gates), :].add(bias) if gates else table

    return init


def modulate(
    x: Float[Array, "B V F S D"],
    shift: Float[Array, "B 1 f s D"],
    scale: Float[Array, "B 1 f s D"],
    eps: float = 1e-6,
) -> Float[Array, "B V F S D"]:
    """adaLN: normalise without parameters, then scale and shift by the time."""
    return (layer_norm(x.astype(jnp.float32), eps) * (1 + scale) + shift).astype(x.dtype)


def residual(
    x: Float[Array, "B V F S D"], gate: Float[Array, "B 1 f s D"], y: Float[Array, "B V F S D"]
) -> Float[Array, "B V F S D"]:
    """x + gate * y, the product in float32."""
    return (x + gate * y).astype(x.dtype)


class PictureEmbedding(nn.Module):
    """Features of a conditioning picture brought to the tower's width (Wan2.1 I2V)."""

    config: WanConfig

    @nn.compact
    def __call__(self, features: Float[Array, "B I Di"]) -> Float[Array, "B I D"]:
        c = self.config
        norm = lambda name, axis: nn.LayerNorm(  # noqa: E731
            epsilon=1e-5,
            name=name,
            scale_init=named(nn.initializers.ones_init(), axis),
            bias_init=named(nn.initializers.zeros_init(), axis),
        )
        if c.image_positions is not None:
            table = self.param(
                "positions",
                named(nn.initializers.zeros_init(), None, "frequency"),
                (c.image_positions, c.image_width),
                jnp.dtype(c.param_dtype),
            )
            features = features + table
        x = norm("norm_in", "frequency")(features).astype(c.dtype)
        x = nn.gelu(dense(c.image_width, ("frequency", "embed"), name="up", **c.dtypes)(x), False)
        x = dense(c.width, ("embed", "embed_out"), name="down", **c.dtypes)(x)
        return norm("norm_out", "embed")(x).astype(c.dtype)


class WanEmbedding(nn.Module):
    """Patches, time and text brought to the tower's width."""

    config: WanConfig
    duration: bool = False

    def setup(self) -> None:
        c = self.config
        self.patches = dense(c.width, ("patch", "embed"), **c.dtypes)
        self.time_in = dense(c.width, ("frequency", "embed"))
        self.time_out = dense(c.width, ("embed", "embed_out"))
        self.time_modulation = dense(6 * c.width, ("embed", "modulation"))
        self.text_in = dense(c.width, ("text", "embed"), **c.dtypes)
        self.text_out = dense(c.width, ("embed", "embed_out"), **c.dtypes)
        if c.image_width is not None:
            self.picture = PictureEmbedding(c)
        if self.duration:
            # Zero-initialised: inherited weights give the same numbers with it.
            self.duration_in = dense(c.width, ("frequency", "embed"), scale=0.0)

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
        hidden = self.time_in(sinusoid(timestep, self.config.frequency_width))
        if self.duration and duration is not None:
            hidden = hidden + self.duration_in(sinusoid(duration, self.config.frequency_width))
        embedding = self.time_out(nn.silu(hidden))
        modulation = self.time_modulation(nn.silu(embedding))
        return embedding, rearrange(modulation, "b f s (six d) -> b f s six d", six=6)

    def text(self, features: Float[Array, "B L Dt"]) -> Float[Array, "B L D"]:
        """Projects the text encoder's features."""
        return self.text_out(nn.gelu(self.text_in(features), approximate=True))


class TextAttention(MultiHeadAttention):
    """Cross-attention to the text and, with `picture`, to a picture's tokens.

    The two have keys and values of their own and are read by the same queries;
    what is read is summed before the output projection.
    """

    picture: bool = False

    def setup(self) -> None:
        super().setup()
        if self.picture:
            sizes = (self.heads, self.head_dim)
            dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
            dtypes["label"] = f"{self.kind}/projected"
            self.picture_key = HeadProjection(*sizes, norm=True, eps=self.eps, **dtypes)
            self.picture_value = HeadProjection(*sizes, **dtypes)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        text: Float[Array, "B L D"],
        *,
        segments: tuple[Int[Array, "B T"], Int[Array, "B L"]] | None = None,
        picture: Float[Array, "B I D"] | None = None,
    ) -> Float[Array, "B T width"]:
        """Attends from `x` to the text and the picture."""
        if not self.picture:
            return super().__call__(x, text, segments=segments)
        query = self.project_query(x)
        y = attend(query, self.key(text), self.value(text), segments=segments, **self.door())
        if picture is not None:
            keys, values = self.picture_key(picture), self.picture_value(picture)
            y = y + attend(query, keys, values, **self.door())
        return self.out(y)


class WanBlock(nn.Module):
    """One block, its three steps callable one by one so that a graft fits between."""

    config: WanConfig

    def setup(self) -> None:
        c = self.config
        attention = dict(
            heads=c.heads,
            head_dim=c.head_dim,
            width=c.width,
            eps=c.eps,
            implementation=c.attention,
            **c.dtypes,
        )
        self.table = self.param(
            "table", named(table_init((2, 5), c.gate_bias), None, "embed"), (6, c.width)
        )
        self.self_attention = MultiHeadAttention(frames_in="both", **attention)
        if c.text_norm:
            self.text_norm = nn.LayerNorm(
                epsilon=c.eps,
                dtype=jnp.float32,
                scale_init=named(nn.initializers.ones_init(), "embed"),
                bias_init=named(nn.initializers.zeros_init(), "embed"),
            )
        self.text_attention = TextAttention(
            picture=c.image_width is not None, kind="text", frames_in="queries", **attention
        )
        self.ffn = FeedForward(c.ffn, c.width, **c.dtypes)

    def __call__(
        self,
        x: Float[Array, "B V F S D"],
        time: Float[Array, "B f s 6 D"],
        text: Float[Array, "B L D"],
        angles: Float[Array, "B F S P"],
        picture: Float[Array, "B I D"] | None = None,
    ) -> tuple[Float[Array, "B V F S D"], None]:
        """The whole block, as Wan runs it: one event, nothing grafted."""
        x = nn.with_logical_constraint(x, ("batch", "views", "frames", "tokens", "embed_act"))
        modulation = self.modulation(time)
        x = self.self_attend(x, modulation, angles)
        x = self.read_text(x, text, picture=picture)
        return self.feed_forward(x, modulation), None

    def modulation(self, time: Float[Array, "B f s 6 D"]) -> list[Float[Array, "B 1 f s D"]]:
        """shift, scale, gate of the self-attention, then of the FFN."""
        rows = jnp.moveaxis(time + self.table, -2, 0)[:, :, None]
        return list(rows)

    def self_attend(
        self,
        x: Float[Array, "B V F S D"],
        modulation: list[Array],
        angles: Float[Array, "B F S P"],
        segment: Int[Array, "B F"] | None = None,
    ) -> Float[Array, "B V F S D"]:
        """Attention inside each view: views ride the batch axis.

        `segment` keeps packed events apart; None: all frames are one event.
        """
        shift, scale, gate = modulation[:3]
        views, frames, tokens = x.shape[1:4]
        y = rearrange(modulate(x, shift, scale, self.config.eps), "b v f s d -> (b v) (f s) d")
        turn = jnp.repeat(rearrange(angles, "b f s p -> b (f s) p"), views, axis=0)
        segments = None
        if segment is not None:
            ids = jnp.repeat(jnp.repeat(segment, tokens, axis=1), views, axis=0)
            segments = (ids, ids)
        y = self.self_attention(y, y, angles=turn, segments=segments)
        return residual(x, gate, rearrange(y, "(b v) (f s) d -> b v f s d", v=views, f=frames))

    def read_text(
        self,
        x: Float[Array, "B V F S D"],
        text: Float[Array, "B L D"],
        segments: tuple[Int[Array, "B F"], Int[Array, "B L"]] | None = None,
        picture: Float[Array, "B I D"] | None = None,
    ) -> Float[Array, "B V F S D"]:
        """Cross-attention: every token reads the caption of its own event.

        `segments` are those of frames and text; None: one caption for all.
        """
        views, frames = x.shape[1:3]
        y = self.text_norm(x).astype(x.dtype) if self.config.text_norm else x
        if segments is not None:
            ids = jnp.broadcast_to(segments[0][:, None, :, None], x.shape[:4])
            segments = (merge_tokens(ids), segments[1])
        y = self.text_attention(merge_tokens(y), text, segments=segments, picture=picture)
        return x + split_tokens(y, views, frames)

    def feed_forward(
        self, x: Float[Array, "B V F S D"], modulation: list[Array]
    ) -> Float[Array, "B V F S D"]:
        """The FFN, token by token.

        Frames and tokens are one axis there: what is kept for the backward pass
        would be padded by the few tokens of each frame otherwise.
        """
        shift, scale, gate = modulation[3:]
        y = modulate(x, shift, scale, self.config.eps)
        y = self.ffn(rearrange(y, "b v f s d -> b v (f s) d"))
        return residual(x, gate, rearrange(y, "b v (f s) d -> b v f s d", f=x.shape[2]))


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
        table = self.param("table", named(table_init((), 0.0), None, "embed"), (2, c.width))
        shift, scale = embedding[:, None] + table[0], embedding[:, None] + table[1]
        pt, ph, pw = c.patch
        y = dense(c.out_channels * pt * ph * pw, ("embed", "patch"), name="out", **c.dtypes)(
            modulate(x, shift, scale, c.eps)
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


class WanDiT(nn.Module):
    """Wan itself: the velocity of one video latent, given its noise level and a caption."""

    config: WanConfig

    def setup(self) -> None:
        c = self.config
        self.embedding = WanEmbedding(c)
        self.blocks = stacked(rematerialised(WanBlock, c.remat), c)
        self.head = WanHead(c)

    def __call__(
        self,
        latents: Float[ArrayLike, "B F H W C"],
        timestep: Num[ArrayLike, "B *tokens"],
        text: Float[ArrayLike, "B L Dt"],
        picture: Float[ArrayLike, "B I Di"] | None = None,
    ) -> Float[Array, "B F H W Co"]:
        """One forward.

        Args:
          latents: noisy latents, normalised; for image-to-video models the mask
            and the observed latents follow on the channel axis.
          timestep: sigma * 1000, one per sample [B] or per token [B, f*h*w]
            (tokens in (f h w) order; Wan2.2-TI2V gives clean frames 0).
          text: features of the caption, zeros where it is padded: Wan reads all
            of its 512 positions.
          picture: features of the conditioning picture, for models with
            `image_width`.

        Raises:
          ValueError: latents that are not whole patches, a wrong number of
            timesteps, or a picture the model cannot read or misses.
          SequenceCutError: a mesh that cuts the frames unevenly.
        """
        c = self.config
        latents, timestep, text = map(jnp.asarray, (latents, timestep, text))
        frames, height, width = latents.shape[1:4]
        f, h, w = (size // p for size, p in zip((frames, height, width), c.patch, strict=True))
        if (f * c.patch[0], h * c.patch[1], w * c.patch[2]) != (frames, height, width):
            raise ValueError(
                f"latents of {frames}x{height}x{width} are not whole patches of {c.patch}; pad or crop them"
            )
        if (picture is None) != (c.image_width is None):
            raise ValueError(
                f"picture is {'missing' if picture is None else 'given'} but the model's image_width is "
                f"{c.image_width}; pass picture features exactly when it is set"
            )
        if timestep.ndim == 2 and timestep.shape[1] != f * h * w:
            raise ValueError(
                f"timestep has {timestep.shape[1]} entries per sample, the latents {f * h * w} tokens; "
                "give one per token or one per sample"
            )
        refuse_uneven_frames(f, latents.shape[0])
        rows = (f, h * w) if timestep.ndim == 2 else (1, 1)
        embedding, time = self.embedding.time(timestep.reshape(-1, *rows))
        x = self.embedding.latents(latents[:, None].astype(c.dtype))
        place = jnp.broadcast_to(jnp.arange(f), (latents.shape[0], f))
        if picture is not None:
            picture = self.embedding.picture(jnp.asarray(picture))
        text = self.embedding.text(text.astype(c.dtype))
        x, _ = self.blocks(x, time, text, grid_angles(place, (h, w), c.head_dim // 2), picture)
        return self.head(x, embedding, (h, w))[:, 0]
