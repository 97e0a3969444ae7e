"""Lays a few events side by side into one fixed-length packed sequence."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from wallwm_jax.input import fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class EventItem:
    """One event, normalised and tokenised, ready to be packed.

    Attributes:
      latents: clean latents; frame 0 is the observed key frame, 1..N the future.
      visible: False on cells of a synthetic border (they never count in a loss).
      intrinsics, extrinsics: cameras at the last sampled frame of each latent frame.
      actions: normalised action steps; masked dimensions are 0.
      action_mask: which of the 20 dimensions the embodiment has.
      state: normalised proprioception at the observation.
      text, text_mask: caption ids, at least one real token.
      event_id: index of the event in its store.
    """

    latents: Float[np.ndarray, "views frames h w c"]
    visible: Bool[np.ndarray, "views frames h w"]
    intrinsics: Float[np.ndarray, "frames views 3 3"]
    extrinsics: Float[np.ndarray, "frames views 4 4"]
    actions: Float[np.ndarray, "steps 20"]
    action_mask: Bool[np.ndarray, "20"]
    state: Float[np.ndarray, "ds"]
    text: Int[np.ndarray, "tokens"]
    text_mask: Bool[np.ndarray, "tokens"]
    event_id: int

    @property
    def frames(self) -> int:
        """Latent frames, key frame included (1 + N)."""
        return self.latents.shape[1]

    @property
    def steps(self) -> int:
        """Action steps L_e."""
        return len(self.actions)


def assemble(
    items: list[EventItem], dims: fields.BatchDims
) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Packs `items` in order into the arrays of one sequence (no batch axis).

    Event number i (1-based) occupies the next free latent frames and the next
    free action steps; segment ids in both streams, slot i-1 in the per-event
    arrays. Two items with frames 2, 3 and steps 4, 9 in F=6, A=14 give

      frame_segment   1 1 2 2 2 0
      frame_index     0 1 0 1 2 0
      action_segment  1 1 1 1 2 2 2 2 2 2 2 2 2 0

    Raises:
      ValueError: the items do not fit; the packer planned with other numbers.
    """
    _check_fit(items, dims)
    arrays = fields.empty_sequence(dims)
    frame = action = 0
    for slot, item in enumerate(items):
        f, a = slice(frame, frame + item.frames), slice(action, action + item.steps)
        arrays["latents"][:, f] = item.latents
        arrays["visible"][:, f] = item.visible
        arrays["frame_segment"][f] = slot + 1
        arrays["frame_index"][f] = np.arange(item.frames)
        arrays["intrinsics"][f] = item.intrinsics
        arrays["extrinsics"][f] = item.extrinsics
        arrays["actions"][a] = item.actions
        arrays["action_segment"][a] = slot + 1
        arrays["action_index"][a] = np.arange(item.steps)
        for name in ("action_mask", "state", "text", "text_mask", "event_id"):
            arrays[name][slot] = getattr(item, name)
        arrays["event_length"][slot] = item.steps
        frame, action = f.stop, a.stop
    return arrays


def _check_fit(items: list[EventItem], dims: fields.BatchDims) -> None:
    """Raises when the sum of the items exceeds a capacity, naming which."""
    needs = {
        "frames": sum(item.frames for item in items),
        "actions": sum(item.steps for item in items),
        "events": len(items),
    }
    for name, need in needs.items():
        if need > getattr(dims, name):
            ids = [item.event_id for item in items]
            raise ValueError(
                f"packed events {ids} need {need} {name} but the batch holds "
                f"{getattr(dims, name)}; raise BatchDims.{name} or plan with this capacity"
            )
