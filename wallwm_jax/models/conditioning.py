"""Channel y: how the video tower is told what was observed (method section 2).

    "clean"     observed latent frames stand clean in place, at level 0; the
                frames to come carry the event's noise       (Wan2.2-TI2V-5B)
    "channels"  every frame carries the event's noise, and beside it on the
                channel axis lie a mask and the observation: [noisy C, mask 4,
                observed C], blank where nothing is observed  (Wan2.1/2.2 I2V)

The mask has one channel per raw frame of a latent one. All else that differs
follows from which frames carry noise (`noised_frames`): those have the event's
level, are predicted, count in the loss, and are what a sampler moves. Training
and rollout ask here, so neither knows which form the tower has.

Letters: B sequences, V views, F latent frames, H W latent grid, C channels,
E event slots.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from wallwm_jax.models.layers import spread
from wallwm_jax.types import PackedEvents

FORMS = ("clean", "channels")
"""How the observation reaches the tower."""

MASK_CHANNELS = 4
"""Raw frames behind a latent frame: Wan's codec groups four."""


class Given(NamedTuple):
    """What is observed of a video.

    Attributes:
      latents: clean latents; only read where `mask` is True.
      mask: True where they are given to the tower.
    """

    latents: Float[Array, "B V F H W C"]
    mask: Bool[Array, "B V F H W"]


def checked(form: str) -> str:
    """`form`, or ValueError listing the forms."""
    if form not in FORMS:
        raise ValueError(f"conditioning {form!r} is unknown; use one of {FORMS}")
    return form


def input_channels(form: str, channels: int) -> int:
    """Channels the tower takes for latents of `channels` channels."""
    return channels if checked(form) == "clean" else 2 * channels + MASK_CHANNELS


def observed_frames(packed: PackedEvents) -> Bool[Array, "B F"]:
    """Latent frames that were seen: the key frame, and the history before it."""
    return (packed.frame_segment > 0) & (packed.frame_index <= 0)


def future_frames(packed: PackedEvents) -> Bool[Array, "B F"]:
    """Latent frames that are imagined: real and not observed."""
    return (packed.frame_segment > 0) & (packed.frame_index > 0)


def noised_frames(packed: PackedEvents, form: str = "clean") -> Bool[Array, "B F"]:
    """Latent frames that carry noise, are predicted and move under a sampler."""
    if checked(form) == "clean":
        return future_frames(packed)
    return packed.frame_segment > 0


def frame_sigma(
    packed: PackedEvents, per_event: Float[Array, "B E"], form: str = "clean"
) -> Float[Array, "B F"]:
    """Each event's noise level on the frames that carry noise, 0 on the others."""
    return jnp.where(noised_frames(packed, form), spread(per_event, packed.frame_segment), 0.0)


def observe(
    latents: Float[Array, "B V F H W C"],
    packed: PackedEvents,
    hidden: Bool[Array, "B V F H W"] | None = None,
) -> Given:
    """What is given of a batch: its observed frames, less what a tube hides.

    Args:
      latents: clean latents; frames to come may hold anything.
      hidden: cells withheld from y too (`Tube.hidden`, with p_tube_cond).
    """
    mask = jnp.broadcast_to(observed_frames(packed)[:, None, :, None, None], latents.shape[:-1])
    return Given(latents, mask if hidden is None else mask & ~hidden)


def tower_input(
    z: Float[Array, "B V F H W C"],
    given: Given,
    form: str = "clean",
    blank: tuple[float, ...] = (),
) -> Float[Array, "B V F H W Ci"]:
    """The noisy latents with the observation laid in ("clean") or beside ("channels").

    Args:
      z: noisy latents.
      blank: per channel, what the observation channels hold where nothing is
        observed; () is zeros. Wan's own I2V models saw their codec's latents
        of grey frames there.
    """
    mask = given.mask[..., None]
    if checked(form) == "clean":
        return jnp.where(mask, given.latents, z)
    empty = jnp.asarray(blank or 0.0, z.dtype)
    seen = jnp.broadcast_to(mask, (*mask.shape[:-1], MASK_CHANNELS)).astype(z.dtype)
    return jnp.concatenate([z, seen, jnp.where(mask, given.latents, empty)], axis=-1)
