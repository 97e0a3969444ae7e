"""Types that several rooms share, so that none has to import another for them."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float, Int

Params = dict[str, Any]
"""A tree of parameters: nested dicts with arrays as leaves."""


@runtime_checkable
class PackedEvents(Protocol):
    """What the denoiser needs to know of a packed sequence of events.

    `input.batch.Batch` satisfies it; models read it without importing `input`.
    Letters: B sequences, F latent frames, A action steps, E event slots,
    L text tokens, Ds state dimensions. Segment 0 is padding, segment e > 0 is
    event slot e - 1.
    """

    frame_segment: Int[Array, "B F"]
    frame_index: Int[Array, "B F"]
    action_segment: Int[Array, "B A"]
    action_index: Int[Array, "B A"]
    state: Float[Array, "B E Ds"]
    text: Int[Array, "B E L"]
    text_mask: Bool[Array, "B E L"]
    event_length: Int[Array, "B E"]
