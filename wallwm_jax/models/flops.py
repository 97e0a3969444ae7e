"""Floating point operations of the towers, counted by hand.

Matrix products only, two operations per multiply-add; norms, softmax and other
elementwise work are left out (they are some thousandths at real widths). This
is the count that a utilisation figure divides by, and the one that a compiled
program is held against.

A training step costs three forwards of what it differentiates (the backward
pass has two products for each one of the forward), and what rematerialisation
computes again.

Letters: D width, M hidden width of the FFN, T video tokens of one view,
V views, L text tokens, I picture tokens, A action steps, E event slots.
"""

import dataclasses
import math

from wallwm_jax.models.action_tower import ActionConfig
from wallwm_jax.models.remat import SAVED
from wallwm_jax.models.umt5 import UMT5Config
from wallwm_jax.models.wan_config import WanConfig

Parts = dict[str, int]
"""Name of a part -> its FLOPs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sequence:
    """Shape of one sequence that a tower reads.

    Attributes:
      frames: latent frames (after patching in time).
      frame_tokens: video tokens of a frame in one view.
      text: text tokens, all captions together.
      views: cameras.
      times: rows of the time embedding: 1 per sample, or one per frame or token.
      picture: tokens of the conditioning picture (Wan2.1 image-to-video).
    """

    frames: int
    frame_tokens: int
    text: int
    views: int = 1
    times: int = 1
    picture: int = 0

    @property
    def view_tokens(self) -> int:
        """Video tokens of one view, T."""
        return self.frames * self.frame_tokens

    @property
    def tokens(self) -> int:
        """Video tokens of all views."""
        return self.views * self.view_tokens


def token_layer_flops(config: WanConfig, *, cross_view: bool = False) -> int:
    """What one layer costs for each video token, however long the sequence is.

    The projections around self-attention (4 D^2), text queries and output
    (2 D^2), the FFN (2 D M), and with `cross_view` that branch's projections.
    """
    maps = (10 if cross_view else 6) * config.width**2 + 2 * config.width * config.ffn
    return 2 * maps


def layer_flops(config: WanConfig, shape: Sequence, *, cross_view: bool = False) -> Parts:
    """One forward of one layer for one sequence, part by part.

    Args:
      config: sizes of the tower.
      shape: of the sequence.
      cross_view: whether the layer has the cross-view branch (method section
        2); with one view it is skipped.
    """
    width, tokens = config.width, shape.tokens
    parts = {
        "tokens": token_layer_flops(config) * tokens,
        "self_attention": _attention(width, tokens, shape.view_tokens),
        "text_keys_values": _maps(width, shape.text),
        "text_attention": _attention(width, tokens, shape.text),
    }
    if config.image_width is not None:
        parts["picture_keys_values"] = _maps(width, shape.picture)
        parts["picture_attention"] = _attention(width, tokens, shape.picture)
    if cross_view and shape.views > 1:
        more = token_layer_flops(config, cross_view=True) - token_layer_flops(config)
        parts["view_tokens"] = more * tokens
        parts["view_attention"] = _attention(width, tokens, shape.views * shape.frame_tokens)
    return parts


def forward_flops(
    config: WanConfig, shape: Sequence, *, cross_view: bool = False, duration: bool = False
) -> Parts:
    """One forward of the whole tower for one sequence, part by part.

    Args:
      config: sizes of the tower.
      shape: of the sequence.
      cross_view: True for `VideoTower`, False for `WanDiT`.
      duration: whether the event's length joins the time embedding.
    """
    layers = layer_flops(config, shape, cross_view=cross_view)
    return {f"layers/{name}": config.layers * n for name, n in layers.items()} | _ends(
        config, shape, cross_view, duration
    )


def recomputed_flops(
    config: WanConfig, shape: Sequence, policy: str, *, cross_view: bool = False
) -> Parts:
    """What the backward pass of one layer computes again, for one sequence, part by part.

    With plain attention: the scores of an attention whose result is kept are
    computed again, and the whole attention otherwise. (A fused kernel whose
    result is kept is not run again, and its own backward recomputes the scores.)

    Args:
      config: sizes of the tower; without a conditioning picture.
      shape: of the sequence.
      policy: one of `remat.POLICIES`.
      cross_view: as for `layer_flops`.
    """
    if policy == "none":
        return {}
    forward = layer_flops(config, shape, cross_view=cross_view)
    scores = {name: n for name, n in forward.items() if name.endswith("_attention")}
    if policy == "dots":
        return scores  # products of batches of matrices are not kept
    names, width, tokens = SAVED[policy], config.width, shape.tokens
    of = {"self": "self_attention", "view": "view_attention", "text": "text_attention"}
    again = {
        part: scores[part] // (2 if f"{kind}/attended" in names else 1)
        for kind, part in of.items()
        if part in scores
    }
    maps = {"self": 3 * tokens, "text": tokens + 2 * shape.text}
    if "view_attention" in scores:
        maps["view"] = 3 * tokens
    for kind, rows in maps.items():
        kept = f"{kind}/projected" in names
        again[f"{kind}_maps"] = 2 * width**2 * (tokens + (0 if kept else rows))
    for name in ("ffn/hidden", "ffn/out"):
        again[name] = 0 if name in names else 2 * tokens * width * config.ffn
    return again


def action_layer_flops(config: ActionConfig, shape: Sequence, actions: int, events: int) -> Parts:
    """One forward of one layer of the action tower, part by part.

    Args:
      config: sizes of the tower.
      shape: of the video sequence it reads.
      actions: action steps, A.
      events: event slots, E, each a state token.

    Returns:
      "reader" once per video forward; all else once per noise draw.
    """
    width = config.width
    return {
        "reader": 2 * 2 * shape.tokens * config.video_width * width,
        "maps": 2 * actions * (8 * width**2 + 3 * width * config.ffn),
        "state_keys_values": _maps(width, events),
        "attention": _attention(width, actions, actions + events + shape.tokens),
    }


def action_end_flops(config: ActionConfig, shape: Sequence, actions: int, events: int) -> Parts:
    """What comes before and after the action tower's layers, per noise draw.

    "places" (features of the patches' positions) is per video forward.
    """
    width, frequencies = config.width, config.frequency_width
    return {
        "places": 2 * shape.frame_tokens * frequencies * config.video_width,
        "state": 2 * events * (config.state_dim + width) * width,
        "time": 2 * actions * (2 * frequencies + width + 8 * width) * width,
        "actions": 2 * 2 * actions * config.action_dim * width,
    }


def text_layer_flops(config: UMT5Config, tokens: int, captions: int = 1) -> int:
    """One forward of one layer of the text encoder over captions of `tokens` tokens."""
    inner = config.heads * config.head_dim
    maps = 4 * config.width * inner + 3 * config.width * config.ffn
    return captions * (2 * tokens * maps + _attention(inner, tokens, tokens))


def rotation_flops(config: WanConfig, shape: Sequence, *, cross_view: bool = False) -> int:
    """What a TPU spends in one layer on swapping channels for rotary embeddings.

    One product per query and key, see `rope.swap_by_product`. Not part of what
    the model needs: it belongs to a compiled program's count, not into a
    utilisation figure.
    """
    turned = 4 if cross_view and shape.views > 1 else 2
    return turned * 2 * shape.tokens * config.width * config.head_dim


def _ends(config: WanConfig, shape: Sequence, cross_view: bool, duration: bool) -> Parts:
    """What comes before and after the layers."""
    width, patch = config.width, math.prod(config.patch)
    frequencies = config.frequency_width * (2 if duration else 1)
    parts = {
        "patches": 2 * shape.tokens * config.in_channels * patch * width,
        "text": 2 * shape.text * (config.text_width + width) * width,
        "time": 2 * shape.times * (frequencies + width + 6 * width) * width,
        "head": 2 * shape.tokens * width * config.out_channels * patch,
    }
    if config.image_width is not None:
        parts["picture"] = 2 * shape.picture * (config.image_width + width) * config.image_width
    if cross_view:
        parts["view_time"] = 2 * shape.times * width * 3 * width
    return parts


def _attention(width: int, queries: int, keys: int) -> int:
    """Scores and weighted values: every query against `keys` keys, over all heads."""
    return 2 * 2 * queries * keys * width


def _maps(width: int, tokens: int) -> int:
    """Keys and values of `tokens` tokens."""
    return 2 * 2 * tokens * width**2
