"""The action tower: a DiT of the video tower's depth that reads it layer by layer.

Block order (method section 3):

    x += gate1 * SelfAttn(mod1(LN(x)))       action steps of one event
    x += CrossAttn(LN(x), state token)
    x += CrossAttn(LN(x), h~V_i)             features of video block pi(i)
    x += gate2 * GatedFFN(mod2(LN(x)))

    h~V_i = ViewConcat(hV_pi(i)) + E_tau(tau_V) + E_abs(t_abs) + E_place

The video never reads the action. `project` turns the features into keys and
values once; `__call__` reads that cache as often as there are noise draws or
denoising steps. E_place (view and patch position) is ours: rotary features
say where tokens are relative to each other, not where in which picture.

Letters: B sequences, A action steps, E event slots, V views, F latent frames,
S tokens of a frame, T = V*F*S, Dv video width, D action width, N layers,
n heads, H head dimension.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from wallwm_jax.models.layers import (
    HeadProjection,
    MultiHeadAttention,
    TowerConfig,
    dense,
    layer_norm,
    named,
    sinusoid,
    spread,
    stacked,
)
from wallwm_jax.models.remat import keep, rematerialised
from wallwm_jax.models.rope import axis_angles
from wallwm_jax.models.sequence_parallel import merge_tokens
from wallwm_jax.models.wan_dit import table_init

Cache = tuple[Float[Array, "N B T n H"], Float[Array, "N B T n H"]]
"""Keys and values of the video features, per action layer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActionConfig(TowerConfig):
    """Sizes of the action tower.

    Attributes:
      layers: as many as the video tower has.
      depth_map: pi(i), the video block that action layer i reads; None is i.
      steps_per_latent: Kp, action steps per latent frame.
      max_latent_frames: rows 0..N of E_tau (0 is the observation).
      history_frames: M, further rows -M..-1 for the frames before it in an
        observation-centred window; 0 in event mode.
      max_chunks: rows of E_abs, the sliding chunk index of unified mode.
    """

    video_width: int
    views: int
    action_dim: int
    state_dim: int
    steps_per_latent: int
    max_latent_frames: int
    history_frames: int = 0
    max_chunks: int = 1
    depth_map: tuple[int, ...] | None = None


def modulate(
    x: Float[Array, "B A D"], shift: Float[Array, "B A D"], scale: Float[Array, "B A D"], eps: float
) -> Float[Array, "B A D"]:
    """adaLN, one shift and scale per action step."""
    return (layer_norm(x.astype(jnp.float32), eps) * (1 + scale) + shift).astype(x.dtype)


def residual(
    x: Float[Array, "B A D"], gate: Float[Array, "B A D"], y: Float[Array, "B A D"]
) -> Float[Array, "B A D"]:
    """x + gate * y, the product in float32."""
    return (x + gate * y).astype(x.dtype)


class GatedFFN(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    config: ActionConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B A D"]) -> Float[Array, "B A D"]:
        c = self.config
        gate = keep(dense(c.ffn, ("embed", "mlp"), name="gate", **c.dtypes)(x), "ffn/hidden")
        up = keep(dense(c.ffn, ("embed", "mlp"), name="up", **c.dtypes)(x), "ffn/hidden")
        y = dense(c.width, ("mlp", "embed"), 0.1, name="down", **c.dtypes)(nn.silu(gate) * up)
        return keep(y, "ffn/out")


class VideoReader(nn.Module):
    """Keys and values of one layer's video features, positions added."""

    config: ActionConfig

    @nn.compact
    def __call__(
        self, carry: None, features: Float[Array, "B T Dv"], positions: Float[Array, "B T Dv"]
    ) -> tuple[None, tuple[Float[Array, "B T n H"], Float[Array, "B T n H"]]]:
        c = self.config
        h = layer_norm(features, c.eps).astype(c.dtype) + positions
        key = HeadProjection(c.heads, c.head_dim, norm=True, eps=c.eps, name="key", **c.dtypes)(h)
        value = HeadProjection(c.heads, c.head_dim, name="value", **c.dtypes)(h)
        return carry, (key, value)


class ActionBlock(nn.Module):
    """One action layer."""

    config: ActionConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B A D"],
        cache: tuple[Float[Array, "B T n H"], Float[Array, "B T n H"]],
        time: Float[Array, "B A 6 D"],
        state: Float[Array, "B E D"],
        angles: Float[Array, "B A P"],
        segments: tuple[Int[Array, "B A"], Int[Array, "B E"], Int[Array, "B T"]],
    ) -> tuple[Float[Array, "B A D"], None]:
        c = self.config
        x = nn.with_logical_constraint(x, ("batch", "actions", "embed_act"))
        table = self.param("table", named(table_init((2, 5), 1.0), None, "embed"), (6, c.width))
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.moveaxis(time + table, -2, 0)
        attention = dict(
            heads=c.heads,
            head_dim=c.head_dim,
            width=c.width,
            out_scale=0.1,
            eps=c.eps,
            implementation=c.attention,
            **c.dtypes,
        )
        own, slots, video = segments
        y = modulate(x, shift1, scale1, c.eps)
        y = MultiHeadAttention(name="self_attention", **attention)(
            y, y, angles=angles, segments=(own, own)
        )
        x = residual(x, gate1, y)
        x = x + MultiHeadAttention(name="state_attention", kind="state", **attention)(
            layer_norm(x, c.eps), state, segments=(own, slots)
        )
        x = x + MultiHeadAttention(
            name="video_attention", kind="video", frames_in="keys", **attention
        ).read(layer_norm(x, c.eps), *cache, segments=(own, video))
        y = GatedFFN(c, name="ffn")(modulate(x, shift2, scale2, c.eps))
        return residual(x, gate2, y), None


class ActionTower(nn.Module):
    """Predicts the velocity of the action trajectory."""

    config: ActionConfig

    def setup(self) -> None:
        c = self.config
        small = nn.initializers.normal(0.02)
        table = lambda name, rows, width: self.param(  # noqa: E731
            name, named(small, None, "embed"), (rows, width), jnp.dtype(c.param_dtype)
        )
        rows = c.history_frames + c.max_latent_frames
        self.tau_video = table("tau_video", rows, c.video_width)
        # Actions come after the observation, so tau > 0. The state's own E_tau(0)
        # is a constant added to one kind of token: the bias of `state_out`.
        self.tau_action = table("tau_action", c.max_latent_frames, c.width)
        self.chunk_video = table("chunk_video", c.max_chunks, c.video_width)
        self.view_place = table("view_place", c.views, c.video_width)
        self.patch_place = dense(c.video_width, ("frequency", "embed"), **c.dtypes)
        self.action_in = dense(c.width, ("action", "embed"), **c.dtypes)
        self.state_in = dense(c.width, ("state", "embed"), **c.dtypes)
        self.state_out = dense(c.width, ("embed", "embed_out"), **c.dtypes)
        # The time path runs in float32 whatever the compute dtype, as in Wan.
        self.time_in = dense(c.width, ("frequency", "embed"))
        self.duration_in = dense(c.width, ("frequency", "embed"))
        self.time_out = dense(c.width, ("embed", "embed_out"))
        self.time_modulation = dense(8 * c.width, ("embed", "modulation"), 0.1)
        self.readers = stacked(rematerialised(VideoReader, c.remat), c, in_axes=(0, nn.broadcast))
        self.blocks = stacked(
            rematerialised(ActionBlock, c.remat), c, in_axes=(0, *[nn.broadcast] * 4)
        )
        self.out = dense(c.action_dim, ("embed", "action"), 0.01, **c.dtypes)

    def project(
        self,
        features: Float[Array, "N B V F S Dv"],
        frame_index: Int[Array, "B F"],
        chunk_index: Int[Array, "B F"] | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Cache:
        """Keys and values of the matched video features, computed once.

        Args:
          features: the video tower's blocks, in order.
          frame_index: tau of each latent frame: 0..N in its event, -M..N around
            the anchor of an observation-centred window. Frames further off
            share the outermost row.
          chunk_index: sliding chunk index t_abs; None is 0 (event mode). Chunks
            beyond the table share its last row.
          grid: (h, w) with h*w = S; None means a square grid.
        """
        c = self.config
        if c.depth_map is not None:
            features = features[jnp.asarray(c.depth_map)]
        _, batch, views, frames, tokens, _ = features.shape
        chunk = jnp.zeros_like(frame_index) if chunk_index is None else chunk_index
        # An index outside a table would wrap around to the other end.
        tau = jnp.clip(frame_index + c.history_frames, 0, self.tau_video.shape[0] - 1)
        chunk = jnp.clip(chunk, 0, c.max_chunks - 1)
        when = self.tau_video[tau] + self.chunk_video[chunk]
        where = self.view_place[:views, None] + self._patch_features(tokens, grid)
        positions = when[:, None, :, None] + where[None, :, None]
        positions = merge_tokens(positions).astype(c.dtype)
        return self.readers(None, jax.vmap(merge_tokens)(features), positions)[1]

    def _patch_features(self, tokens: int, grid: tuple[int, int] | None) -> Float[Array, "S Dv"]:
        h, w = grid or (round(tokens**0.5),) * 2
        # Positions in thousandths of the picture: the same at any resolution.
        rows = sinusoid((jnp.arange(h) + 0.5) * 1000 / h, self.config.frequency_width // 2)
        columns = sinusoid((jnp.arange(w) + 0.5) * 1000 / w, self.config.frequency_width // 2)
        both = jnp.concatenate([jnp.repeat(rows, w, axis=0), jnp.tile(columns, (h, 1))], axis=-1)
        return self.patch_place(both.astype(self.config.dtype))

    def __call__(
        self,
        actions: Float[Array, "B A Da"],
        timestep: Float[Array, "B A"],
        state: Float[Array, "B E Ds"],
        cache: Cache,
        action_segment: Int[Array, "B A"],
        action_index: Int[Array, "B A"],
        frame_segment: Int[Array, "B F"],
        duration: Float[Array, "B A"],
    ) -> Float[Array, "B A Da"]:
        """One forward at one action noise level per event.

        Args:
          actions: noisy trajectory, normalised; missing dimensions zero.
          timestep: sigma * 1000 of the action step's event.
          state: proprioception of each event slot, normalised.
          cache: what `project` returned.
          action_segment, action_index: event and step within it.
          frame_segment: segments of the video frames behind the cache.
          duration: length of the action step's event in control steps.
        """
        c = self.config
        tau = jnp.minimum(action_index // c.steps_per_latent + 1, c.max_latent_frames - 1)
        x = self.action_in(actions.astype(c.dtype)) + self.tau_action[tau].astype(c.dtype)
        hidden = self.time_in(sinusoid(timestep, c.frequency_width))
        hidden = hidden + self.duration_in(sinusoid(10 * duration, c.frequency_width))
        modulation = self.time_modulation(nn.silu(self.time_out(nn.silu(hidden))))
        modulation = rearrange(modulation, "b a (k d) -> b a k d", k=8)
        tokens = self.state_out(nn.silu(self.state_in(state.astype(c.dtype))))
        slots = jnp.broadcast_to(
            jnp.arange(1, state.shape[1] + 1, dtype=jnp.int32), state.shape[:2]
        )
        per_frame = cache[0].shape[2] // (c.views * frame_segment.shape[1])
        sizes = (len(frame_segment), c.views, frame_segment.shape[1], per_frame)
        video = merge_tokens(jnp.broadcast_to(frame_segment[:, None, :, None], sizes))
        x, _ = self.blocks(
            x,
            cache,
            modulation[:, :, :6],
            tokens,
            axis_angles(action_index, c.head_dim // 2),
            (action_segment, slots, video),
        )
        shift, scale = modulation[:, :, 6], modulation[:, :, 7]
        return self.out(modulate(x, shift, scale, c.eps))


def durations(event_length: Int[Array, "B E"], segment: Int[Array, "B T"]) -> Float[Array, "B T"]:
    """Length in control steps of the event each token belongs to; 0 for padding."""
    return spread(event_length, segment).astype(jnp.float32)
