"""`Batch`: the one typed home of what a train step reads.

A batch holds B packed sequences. A sequence holds several events one after
another; segment ids say which latent frame, action step and slot belong
together, and attention never crosses them (method section 6, Pack).
"""

from typing import Any

import flax.struct
import jax
import numpy as np

from wallwm_jax.input import checks, fake
from wallwm_jax.input.fields import ACTION_DIMS, FIELDS, BatchDims, shape_of

__all__ = ["ACTION_DIMS", "Batch", "BatchDims"]

# A leaf is a numpy array in the loader, a jax.Array in the step, a shape or a
# sharding while planning. One class carries all four, so fields are not bound
# to an array type here: `Batch.check` is the check, against `fields.FIELDS`.
Leaf = Any


@flax.struct.dataclass
class Batch:
    """B packed sequences (axis letters: see `fields`).

    Attributes:
      latents: f32[B V F h w C] clean latents z_0; zero in padding.
      visible: bool[B V F h w] border mask: True counts in the loss; False in padding.
      frame_segment: i32[B F] 0 in padding, else the event's number 1..E.
      frame_index: i32[B F] tau: 0 is the observed key frame, 1..N the future.
      intrinsics: f32[B F V 3 3] K in pixels.
      extrinsics: f32[B F V 4 4] world -> camera (OpenCV), at the last sampled
        frame of each latent frame; identity in padding.
      actions: f32[B A 20] normalised; masked dimensions and padding are 0.
      action_segment: i32[B A] 0 in padding, else 1..E.
      action_index: i32[B A] 0-based step k inside its event.
      action_mask: bool[B E 20] dimensions the embodiment has; False in unused slots.
      state: f32[B E S] normalised proprioception at the observation.
      text: i32[B E L] caption ids.
      text_mask: bool[B E L] real tokens; an empty caption keeps its end token,
        an unused slot has none.
      event_length: i32[B E] action steps L_e, 0 in unused slots.
      event_id: i32[B E] index in the event store, -1 in unused slots.
    """

    latents: Leaf
    visible: Leaf
    frame_segment: Leaf
    frame_index: Leaf
    intrinsics: Leaf
    extrinsics: Leaf
    actions: Leaf
    action_segment: Leaf
    action_index: Leaf
    action_mask: Leaf
    state: Leaf
    text: Leaf
    text_mask: Leaf
    event_length: Leaf
    event_id: Leaf

    @classmethod
    def spec(cls, dims: BatchDims) -> "Batch":
        """The batch as `jax.ShapeDtypeStruct`s: for shape-first initialisation."""
        sizes = dims.sizes()
        return cls(
            **{
                name: jax.ShapeDtypeStruct(shape_of(letters, sizes), dtype)
                for name, (dtype, letters) in FIELDS.items()
            }
        )

    @classmethod
    def fake(cls, dims: BatchDims, seed: int, steps_per_frame: int = 8) -> "Batch":
        """A valid random batch of numpy arrays that needs no data.

        Several events per sequence where they fit, some padding, cameras that
        look at a common point (their sight cones overlap), an empty caption
        here and there, a masked second arm.

        Raises:
          ValueError: `dims` cannot hold even the shortest event (2 latent frames).
        """
        return cls(**fake.fake_arrays(dims, seed, steps_per_frame))

    @classmethod
    def stack(cls, sequences: list[dict[str, np.ndarray]]) -> "Batch":
        """Stacks the arrays of B sequences (see `assemble`) into a batch."""
        return cls(**{name: np.stack([s[name] for s in sequences]) for name in FIELDS})

    def check(self, dims: BatchDims | None = None, steps_per_frame: int = 8) -> None:
        """Raises ValueError, one line, when the batch breaks its own rules.

        Args:
          dims: sizes to hold the batch against; None only asks for consistency.
          steps_per_frame: K_p, action steps at most per future latent frame.
        """
        arrays = {name: np.asarray(getattr(self, name)) for name in FIELDS}
        checks.check_arrays(arrays, None if dims is None else dims.sizes(), steps_per_frame)
