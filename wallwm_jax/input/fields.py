"""The fields of a packed batch as data: sizes, dtypes, shapes.

One table feeds `Batch.spec`, `Batch.check`, the fake batch and the packer, so
that a field is described in exactly one place.

Legend of the axis letters:
  B sequences in the batch      V camera views          F latent frames (capacity)
  h, w latent grid              C latent channels       A action steps (capacity)
  E event slots per sequence    S proprioceptive state  L text tokens per caption
"""

import dataclasses

import numpy as np
from jaxtyping import Shaped

ACTION_DIMS = 20
"""Canonical action width: two arms x (3 position, 6 rotation, 1 gripper)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchDims:
    """Sizes of a packed batch; capacities are fixed so that nothing recompiles.

    Attributes:
      sequences: B, packed sequences per batch.
      views: V, cameras.
      frames: F, latent frames per sequence, key frames included.
      height, width, channels: h, w, C of one latent frame.
      actions: A, action steps per sequence.
      events: E, events per sequence at most.
      state: width of the proprioceptive state.
      text: L, tokens per caption.
    """

    sequences: int
    views: int
    frames: int
    height: int
    width: int
    channels: int
    actions: int
    events: int
    state: int
    text: int

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(
                    f"BatchDims.{field.name} = {getattr(self, field.name)}; "
                    "every size must be at least 1"
                )

    def sizes(self) -> dict[str, int]:
        """Axis letter -> size, for the letters of `FIELDS`."""
        letters = "B V F h w C A E S L".split()
        names = "sequences views frames height width channels actions events state text".split()
        return {letter: getattr(self, name) for letter, name in zip(letters, names, strict=True)}


FIELDS = {
    "latents": (np.float32, "B V F h w C"),
    "visible": (np.bool_, "B V F h w"),
    "frame_segment": (np.int32, "B F"),
    "frame_index": (np.int32, "B F"),
    "intrinsics": (np.float32, "B F V 3 3"),
    "extrinsics": (np.float32, "B F V 4 4"),
    "actions": (np.float32, f"B A {ACTION_DIMS}"),
    "action_segment": (np.int32, "B A"),
    "action_index": (np.int32, "B A"),
    "action_mask": (np.bool_, f"B E {ACTION_DIMS}"),
    "state": (np.float32, "B E S"),
    "text": (np.int32, "B E L"),
    "text_mask": (np.bool_, "B E L"),
    "event_length": (np.int32, "B E"),
    "event_id": (np.int32, "B E"),
}
"""Field -> (dtype, axis letters or literal sizes). Read-only by convention."""


def shape_of(letters: str, sizes: dict[str, int]) -> tuple[int, ...]:
    """Turns "B F V 3 3" into a shape, reading letters from `sizes`."""
    return tuple(sizes[x] if x in sizes else int(x) for x in letters.split())


def empty_sequence(dims: BatchDims) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Arrays of one sequence (no batch axis) in which every place is padding.

    Padding is zero everywhere except where zero would be harmful: cameras are
    identities, so that geometry stays finite, and event ids are -1.
    """
    sizes = dims.sizes()
    arrays = {
        name: np.zeros(shape_of(letters, sizes)[1:], dtype)
        for name, (dtype, letters) in FIELDS.items()
    }
    arrays["intrinsics"][:] = np.eye(3)
    arrays["extrinsics"][:] = np.eye(4)
    arrays["event_id"][:] = -1
    return arrays
