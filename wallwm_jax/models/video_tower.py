"""The multi-view video tower: Wan's DiT with a cross-view branch grafted in.

In each block, after the inherited self-attention inside each view, the tokens
of one latent frame are regrouped across views and attend jointly:

    h <- h + g * W_view(CrossViewAttn(mod(LN(h))))

W_view starts at zero and the branch's other weights start as a copy of the
same block's self-attention (`graft_views`), so at initialisation the tower
with V views equals V single-view Wan forwards. With one view the branch is
skipped altogether.

Letters: B sequences, V views, F latent frames, S = h*w tokens, D width,
N layers, E event slots, L text tokens per event.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Bool, Float, Int

from wallwm_jax.errors import UserError
from wallwm_jax.models.conditioning import input_channels
from wallwm_jax.models.layers import MultiHeadAttention, dense, named, stacked
from wallwm_jax.models.remat import rematerialised
from wallwm_jax.models.rope import axis_angles, camera_angles, camera_pairs, grid_angles
from wallwm_jax.models.sequence_parallel import (
    frames_from_batch,
    frames_to_batch,
    refuse_uneven_frames,
)
from wallwm_jax.models.wan_config import WanConfig
from wallwm_jax.models.wan_dit import (
    WanBlock,
    WanEmbedding,
    WanHead,
    modulate,
    residual,
    table_init,
)
from wallwm_jax.types import Params

TEXT_PADDING = ("masked", "zeros")
"""What becomes of a caption's padded positions."""


class GraftError(UserError):
    """Weights that do not fit the tower they are put into."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """The inherited tower's sizes and what is grafted onto it.

    Attributes:
      wan: the inherited DiT.
      views: number of cameras (rows of the view table).
      duration: whether the event's length joins the time embedding.
      conditioning: form of channel y, one of `conditioning.FORMS`.
      blank_latent: with "channels", per latent channel what the observation
        channels hold on frames to come; () is zeros. Public I2V weights saw
        the latents of grey frames there.
      text_padding: "masked" reads a caption's own tokens only; "zeros" reads
        all positions with zero features in the padding, as public Wan weights
        were trained to.
    """

    wan: WanConfig
    views: int
    duration: bool = True
    conditioning: str = "clean"
    blank_latent: tuple[float, ...] = ()
    text_padding: str = "masked"

    def __post_init__(self) -> None:
        channels = self.wan.out_channels
        needed = input_channels(self.conditioning, channels)
        if self.wan.in_channels != needed:
            raise ValueError(
                f"conditioning {self.conditioning!r} on latents of {channels} channels takes {needed} "
                f"input channels but wan.in_channels is {self.wan.in_channels}; set it to {needed}"
            )
        if len(self.blank_latent) not in (0, channels):
            raise ValueError(
                f"blank_latent has {len(self.blank_latent)} numbers; give one per latent channel "
                f"({channels}) or none"
            )
        if self.text_padding not in TEXT_PADDING:
            raise ValueError(
                f"text_padding {self.text_padding!r} is unknown; use one of {TEXT_PADDING}"
            )
        if self.wan.image_width is not None:
            raise ValueError(
                "the video tower reads no picture features (wan.image_width); its observation comes "
                "through channel y: use a Wan2.2 size or image_width=None"
            )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockInputs:
    """What every block reads besides its hidden state; the same for all layers."""

    time: Float[Array, "B f s 6 D"]
    view_time: Float[Array, "B f s 3 D"]
    text: Float[Array, "B L D"]
    frame_segment: Int[Array, "B F"]
    text_segment: Int[Array, "B L"]
    angles: Float[Array, "B F S P"]
    view_angles: Float[Array, "B F VS P"]
    co_visible: Bool[Array, "B F VS VS"] | None


class ViewAttention(nn.Module):
    """The cross-view branch of one block."""

    config: WanConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B V F S D"], inputs: BlockInputs
    ) -> Float[Array, "B V F S D"]:
        c = self.config
        table = self.param("table", named(table_init((2,), 1.0), None, "embed"), (3, c.width))
        shift, scale, gate = jnp.moveaxis(inputs.view_time + table, -2, 0)[:, :, None]
        views, frames = x.shape[1], x.shape[2]
        y = rearrange(modulate(x, shift, scale, c.eps), "b v f s d -> b f (v s) d")
        y, mask = frames_to_batch(y), None
        if inputs.co_visible is not None:
            mask = frames_to_batch(inputs.co_visible)[:, None]
        y = MultiHeadAttention(
            heads=c.heads,
            head_dim=c.head_dim,
            width=c.width,
            out_scale=0.0,
            eps=c.eps,
            kind="view",
            frames_in="batch",
            implementation=c.attention,
            name="attention",
            **c.dtypes,
        )(y, y, angles=frames_to_batch(inputs.view_angles), mask=mask)
        y = rearrange(frames_from_batch(y, frames), "b f (v s) d -> b v f s d", v=views)
        return residual(x, gate, y)


class VideoBlock(nn.Module):
    """A Wan block with the cross-view branch between self-attention and text."""

    config: WanConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B V F S D"], inputs: BlockInputs
    ) -> tuple[Float[Array, "B V F S D"], Float[Array, "B V F S D"]]:
        x = nn.with_logical_constraint(x, ("batch", "views", "frames", "tokens", "embed_act"))
        wan = WanBlock(self.config, name="wan")
        modulation = wan.modulation(inputs.time)
        x = wan.self_attend(x, modulation, inputs.angles, inputs.frame_segment)
        if x.shape[1] > 1:
            x = ViewAttention(self.config, name="view")(x, inputs)
        x = wan.read_text(x, inputs.text, (inputs.frame_segment, inputs.text_segment))
        x = wan.feed_forward(x, modulation)
        return x, x


class VideoTower(nn.Module):
    """Predicts the video's velocity and hands every block's features on."""

    config: VideoConfig

    def setup(self) -> None:
        c = self.config.wan
        self.embedding = WanEmbedding(c, duration=self.config.duration)
        self.view_modulation = dense(3 * c.width, ("embed", "modulation"), scale=0.0)
        self.view_table = self.param(
            "view_table",
            named(self._view_table, "views", None),
            (self.config.views, camera_pairs(c.head_dim // 2)[3]),
            jnp.dtype(c.param_dtype),
        )
        self.blocks = stacked(rematerialised(VideoBlock, c.remat), c)
        self.head = WanHead(c)

    @staticmethod
    def _view_table(key: Array, shape: tuple[int, int], dtype: jnp.dtype = jnp.float32) -> Array:
        # Starts as if views were positions 0, 1, 2, ... of a rotary axis, so
        # that cameras are told apart from the first step; learned from there.
        del key
        return axis_angles(jnp.arange(shape[0]), shape[1]).astype(dtype)

    def __call__(
        self,
        latents: Float[Array, "B V F H W C"],
        timestep: Float[Array, "B f s"],
        text: Float[Array, "B E L Dt"],
        text_mask: Bool[Array, "B E L"],
        frame_segment: Int[Array, "B F"],
        frame_index: Int[Array, "B F"],
        duration: Float[Array, "B f s"] | None = None,
        co_visible: Bool[Array, "B F VS VS"] | None = None,
    ) -> tuple[Float[Array, "B V F H W Co"], dict[str, Array]]:
        """One forward over packed events.

        Args:
          latents: what `conditioning.tower_input` makes of the noisy latents.
          timestep: sigma * 1000, one per token, frame ([B, F, 1]) or sample.
          text, text_mask: encoded caption of each event slot.
          frame_segment, frame_index: which event a latent frame belongs to,
            and its place in it: 0 the observed key frame, negative the history.
          duration: the event's length in control steps, like `timestep`.
          co_visible: sight-cone mask, training only; None allows every pair.

        Returns:
          (velocity, {"features": [N, B, V, F, S, D]}): the features are the
          outputs of the blocks, in order.

        Raises:
          SequenceCutError: a mesh that cuts the frames unevenly.
        """
        c = self.config.wan
        batch, views, frames, height, width, _ = latents.shape
        refuse_uneven_frames(frames // c.patch[0], batch)
        grid = (height // c.patch[1], width // c.patch[2])
        if self.config.text_padding == "zeros":
            text, text_mask = jnp.where(text_mask[..., None], text, 0), jnp.ones_like(text_mask)
        embedding, time = self.embedding.time(timestep, duration)
        inputs = BlockInputs(
            time=time,
            view_time=rearrange(
                self.view_modulation(nn.silu(embedding)), "b f s (k d) -> b f s k d", k=3
            ),
            text=self.embedding.text(rearrange(text, "b e l d -> b (e l) d").astype(c.dtype)),
            frame_segment=frame_segment,
            text_segment=text_segments(text_mask),
            angles=grid_angles(frame_index, grid, c.head_dim // 2),
            view_angles=rearrange(
                camera_angles(frame_index, grid, self.view_table[:views], c.head_dim // 2),
                "b f v s p -> b f (v s) p",
            ),
            co_visible=co_visible,
        )
        x, features = self.blocks(self.embedding.latents(latents.astype(c.dtype)), inputs)
        return self.head(x, embedding, grid), {"features": features}


def text_segments(text_mask: Bool[Array, "B E L"]) -> Int[Array, "B EL"]:
    """Segment id of every text token: its event slot + 1, or -1 for padding.

    Padding gets an id that no frame carries; a padded frame (0) then reads no
    text at all and its value is never counted.
    """
    slots = jnp.arange(1, text_mask.shape[1] + 1, dtype=jnp.int32)[None, :, None]
    return rearrange(jnp.where(text_mask, slots, -1), "b e l -> b (e l)")


def graft_views(params: Params) -> Params:
    """Starts each block's cross-view attention as a copy of its self-attention.

    The output projector keeps its zeros, so the tower's output is unchanged
    (method section 2, View-interaction self-attention). Works on boxed and
    plain trees alike; towers without the branch are returned as they are.
    """
    blocks = params["blocks"]
    if "view" not in blocks:
        return params
    source, target = blocks["wan"]["self_attention"], blocks["view"]["attention"]
    copied = {name: source[name] for name in ("query", "key", "value")} | {"out": target["out"]}
    view = dict(blocks["view"], attention=copied)
    return dict(params, blocks=dict(blocks, view=view))


def graft(wan: Params, video: Params) -> Params:
    """Puts the weights of a Wan tower under a video tower's grafts.

    Args:
      wan: parameters of `WanDiT`, {"embedding", "blocks", "head"}.
      video: parameters of a `VideoTower` of the same sizes, fresh; boxes with
        logical axis names stay.

    Returns:
      `video` with everything inherited replaced (in `video`'s dtype) and the
      cross-view attention started from it (`graft_views`); what Wan lacks
      (view table, view and duration modulation, W_view) is left as it was.

    Raises:
      GraftError: a missing or surplus leaf, or another shape; all are listed.
    """
    source = {
        ("blocks", "wan", *path[1:]) if path[0] == "blocks" else path: leaf
        for path, leaf in flatten_dict(nn.meta.unbox(wan)).items()
    }
    target = flatten_dict(video)
    inherited = {path for path in target if not _added(path)}
    wrong = [f"{'/'.join(path)} is missing" for path in sorted(inherited - source.keys())]
    wrong += [f"{'/'.join(path)} has no place" for path in sorted(source.keys() - inherited)]
    for path in sorted(inherited & source.keys()):
        have, want = source[path].shape, nn.meta.unbox(target[path]).shape
        if have != want:
            wrong.append(f"{'/'.join(path)} is {have}, the tower takes {want}")
    if wrong:
        raise GraftError(f"weights do not fit the video tower: {'; '.join(wrong)}; match its sizes")
    placed = {path: _filled(target[path], source[path]) for path in inherited}
    return graft_views(unflatten_dict(target | placed))


def _added(path: tuple[str, ...]) -> bool:
    """Whether a leaf of the video tower is ours and not Wan's."""
    return (
        path[0] in ("view_table", "view_modulation")
        or path[:2] == ("blocks", "view")
        or path[:2] == ("embedding", "duration_in")
    )


def _filled(target: Any, value: Array) -> Any:
    """`value` in the dtype and, if there is one, the box of `target`."""
    if isinstance(target, nn.meta.AxisMetadata):
        return target.replace_boxed(value.astype(target.unbox().dtype))
    return value.astype(target.dtype)
