"""The layer-coupled denoiser: text encoder, video tower and action tower.

Pure functions over one tree of parameters {"text", "video", "action"}; packing
arrays come as any object with the fields of `types.PackedEvents`.

Letters: B sequences, V views, F latent frames, H W latent grid, C channels,
A action steps, E event slots, L text tokens, N layers.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from wallwm_jax.models.action_tower import ActionConfig, ActionTower, Cache, durations
from wallwm_jax.models.conditioning import Given, tower_input
from wallwm_jax.models.umt5 import UMT5Config, UMT5Encoder
from wallwm_jax.models.video_tower import VideoConfig, VideoTower, graft_views
from wallwm_jax.types import PackedEvents, Params

TIMESTEP_SCALE = 1000.0
"""Towers are conditioned on sigma * 1000, as Wan's public weights expect."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoiser:
    """The three modules side by side; parameters live outside."""

    text_config: UMT5Config
    video_config: VideoConfig
    action_config: ActionConfig

    def __post_init__(self) -> None:
        wan, action = self.video_config.wan, self.action_config
        depth = action.depth_map or tuple(range(action.layers))
        if (
            action.layers != wan.layers
            or len(depth) != action.layers
            or not set(depth) <= set(range(wan.layers))
        ):
            raise ValueError(
                f"action tower has {action.layers} layers reading video blocks {depth}, the video tower has "
                f"{wan.layers}: give both the same depth and a depth map inside it"
            )
        if (action.video_width, action.views) != (wan.width, self.video_config.views):
            raise ValueError(
                f"action tower expects {action.views} views of width {action.video_width}, the video tower gives "
                f"{self.video_config.views} of width {wan.width}: set them equal"
            )
        if self.text_config.width != wan.text_width:
            raise ValueError(
                f"text encoder width {self.text_config.width} is not the video tower's text width {wan.text_width}"
            )

    @property
    def text(self) -> nn.Module:
        """The frozen text encoder."""
        return UMT5Encoder(self.text_config)

    @property
    def video(self) -> nn.Module:
        """The multi-view video tower."""
        return VideoTower(self.video_config)

    @property
    def action(self) -> nn.Module:
        """The action tower."""
        return ActionTower(self.action_config)

    @property
    def conditioning(self) -> str:
        """How the observation reaches the video tower, one of `conditioning.FORMS`."""
        return self.video_config.conditioning

    def token_grid(self, latents_shape: tuple[int, ...]) -> tuple[int, int]:
        """(h, w) tokens of one latent frame of one view; latents are [B, V, F, H, W, C]."""
        _, ph, pw = self.video_config.wan.patch
        return latents_shape[3] // ph, latents_shape[4] // pw

    def init(
        self, key: Array, latents: Float[Array, "B V F H W C"], packed: PackedEvents
    ) -> Params:
        """Initial parameters {"text", "video", "action"}, boxed with logical names.

        Only shapes of the arguments matter; run it under `jax.eval_shape` or
        `jax.jit` with output shardings.
        """
        keys = jax.random.split(key, 3)
        ids, mask = _captions(packed)
        text = self.text.init(keys[0], ids, mask)["params"]
        features = jnp.zeros((*packed.text.shape, self.text_config.width))
        frames, actions = packed.frame_segment, packed.action_segment
        video = self.video.init(
            keys[1],
            jnp.zeros((*latents.shape[:-1], self.video_config.wan.in_channels)),
            jnp.zeros((*frames.shape, 1)),
            features,
            packed.text_mask,
            frames,
            packed.frame_index,
            jnp.zeros((*frames.shape, 1)),
        )["params"]
        grid = self.token_grid(latents.shape)
        c = self.action_config
        hidden = jnp.zeros(
            (self.video_config.wan.layers, *latents.shape[:3], grid[0] * grid[1], c.video_width)
        )

        def both(tower: ActionTower) -> Array:
            cache = tower.project(hidden, packed.frame_index, grid=grid)
            return tower(
                jnp.zeros((*actions.shape, c.action_dim)),
                jnp.zeros(actions.shape),
                packed.state,
                cache,
                actions,
                packed.action_index,
                frames,
                jnp.zeros(actions.shape),
            )

        action = nn.init(both, self.action)(keys[2])["params"]
        return {"text": text, "video": graft_views(video), "action": action}

    def encode_text(self, params: Params, packed: PackedEvents) -> Float[Array, "B E L Dt"]:
        """Features of every event's caption."""
        ids, mask = _captions(packed)
        features = self.text.apply({"params": params["text"]}, ids, mask)
        return features.reshape(*packed.text.shape, -1)

    def video_velocity(
        self,
        params: Params,
        z: Float[Array, "B V F H W C"],
        sigma: Float[Array, "B F"],
        packed: PackedEvents,
        text: Float[Array, "B E L Dt"],
        given: Given,
        co_visible: Bool[Array, "B F VS VS"] | None = None,
    ) -> tuple[Float[Array, "B V F H W C"], Float[Array, "N B V F S D"]]:
        """Velocity of the video and the features of every block.

        The one door to the video tower: whichever form it was made for, the
        observation is laid into or beside the noisy latents here.

        Args:
          z: noisy latents.
          sigma: level of each frame, see `conditioning.frame_sigma`.
          given: what is observed, see `conditioning.observe`.
          co_visible: sight-cone mask, training only.
        """
        c = self.video_config
        velocity, out = self.video.apply(
            {"params": params["video"]},
            tower_input(z, given, c.conditioning, c.blank_latent),
            TIMESTEP_SCALE * sigma[..., None],
            text,
            packed.text_mask,
            packed.frame_segment,
            packed.frame_index,
            durations(packed.event_length, packed.frame_segment)[..., None],
            co_visible,
        )
        return velocity, out["features"]

    def feature_cache(
        self,
        params: Params,
        features: Float[Array, "N B V F S D"],
        packed: PackedEvents,
        grid: tuple[int, int],
        chunk_index: Int[Array, "B F"] | None = None,
    ) -> Cache:
        """Keys and values the action tower reads, per layer, computed once.

        `chunk_index` is t_abs of each frame, the sliding chunk of an
        observation-centred window; None is 0 (event mode).
        """
        return self.action.apply(
            {"params": params["action"]},
            features,
            packed.frame_index,
            chunk_index,
            grid,
            method="project",
        )

    def action_velocity(
        self,
        params: Params,
        actions: Float[Array, "B A Da"],
        sigma: Float[Array, "B A"],
        packed: PackedEvents,
        cache: Cache,
    ) -> Float[Array, "B A Da"]:
        """Velocity of the action trajectory, given the cache."""
        return self.action.apply(
            {"params": params["action"]},
            actions,
            TIMESTEP_SCALE * sigma,
            packed.state,
            cache,
            packed.action_segment,
            packed.action_index,
            packed.frame_segment,
            durations(packed.event_length, packed.action_segment),
        )


def _captions(packed: PackedEvents) -> tuple[Array, Array]:
    """Event slots as a batch of captions; an unused slot shows one dummy token."""
    mask = rearrange(packed.text_mask, "b e l -> (b e) l")
    first = jnp.arange(mask.shape[1]) == 0
    return rearrange(packed.text, "b e l -> (b e) l"), mask | (first & ~mask.any(-1, keepdims=True))
