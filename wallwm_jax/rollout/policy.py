"""A trained model as a policy: observation and caption in, target poses out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from wallwm_jax.episodes import action_space, clock
from wallwm_jax.input import normalise
from wallwm_jax.input.assemble import EventItem, assemble
from wallwm_jax.input.batch import Batch, BatchDims
from wallwm_jax.input.normalise import InputStatistics
from wallwm_jax.input.tokenise import Tokeniser
from wallwm_jax.models.codec import Codec
from wallwm_jax.models.denoiser import Denoiser
from wallwm_jax.rollout.inference import InferenceConfig, imagine
from wallwm_jax.types import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trajectory:
    """What the policy wants executed: one row per control step, world frame.

    Attributes:
      positions: commanded end-effector positions, metres.
      gripper: -1 open .. +1 closed.
    """

    positions: Float[np.ndarray, "steps 3"]
    gripper: Float[np.ndarray, "steps"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EventPolicy:
    """Imagines one event from an observation and returns its trajectory.

    Attributes:
      denoiser, params: towers and {"codec", "text", "video", "action"}.
      statistics, tokeniser, codec, views: from the checkpoint (and the folders
        it names), so that the robot is fed exactly what training was fed.
      dims: sizes of a batch with one event.
    """

    denoiser: Denoiser
    params: Params
    config: InferenceConfig
    codec: Codec
    statistics: InputStatistics
    tokeniser: Tokeniser
    views: tuple[str, ...]
    embodiment: str
    dims: BatchDims

    def batch(
        self,
        frames: dict[str, UInt8[np.ndarray, "h w 3"]],
        state: Float[np.ndarray, "ds"],
        caption: str,
        steps: int,
    ) -> Batch:
        """The batch of one event still to be imagined.

        Args:
          frames: one picture per view.
          state: proprioception, raw units.
          caption: of the event to come.
          steps: its length in control steps.

        Raises:
          ValueError: a view is missing, or the event is longer than the model's.
        """
        missing = [view for view in self.views if view not in frames]
        if missing:
            raise ValueError(
                f"observation has views {sorted(frames)} but the model needs {missing} too"
            )
        longest = clock.longest_event(self.dims.frames)
        if not 1 <= steps <= longest:
            raise ValueError(
                f"an event of {steps} steps was asked for; this model takes 1..{longest}"
            )
        key = np.stack([frames[view] for view in self.views]).astype(np.float32) / 127.5 - 1
        observed = np.asarray(self.codec.encode(self.params["codec"], key[:, None]))
        count = 1 + clock.event_frames(steps)[0]
        latents = np.zeros((len(self.views), count, *observed.shape[2:]), np.float32)
        latents[:, :1] = observed
        ids, mask = self.tokeniser.encode(caption, self.dims.text)
        item = EventItem(
            latents=latents,
            visible=np.ones(latents.shape[:-1], bool),
            intrinsics=np.tile(np.eye(3, dtype=np.float32), (count, len(self.views), 1, 1)),
            extrinsics=np.tile(np.eye(4, dtype=np.float32), (count, len(self.views), 1, 1)),
            actions=np.zeros((steps, action_space.ACTION_DIMS), np.float32),
            action_mask=action_space.action_mask(self.embodiment),
            state=normalise.normalise(np.asarray(state, np.float32), self.statistics.state),
            text=ids,
            text_mask=mask,
            event_id=0,
        )
        return Batch.stack([assemble([item], self.dims)])

    def __call__(
        self,
        frames: dict[str, UInt8[np.ndarray, "h w 3"]],
        state: Float[np.ndarray, "ds"],
        caption: str,
        steps: int,
        position: Float[np.ndarray, "3"],
        rotation: Float[np.ndarray, "3 3"],
        key: jax.Array,
    ) -> Trajectory:
        """Imagines the event and returns its commanded poses.

        Args:
          position, rotation: commanded end-effector pose now; actions are
            relative to it.
          key: of the noise.
        """
        batch = self.batch(frames, state, caption, steps)
        imagined = imagine(
            self.denoiser, self.config, self.params, jax.tree.map(jnp.asarray, batch), key
        )
        actions = self.unnormalise(np.asarray(imagined.actions[0, :steps]), batch.action_mask[0, 0])
        positions = (
            actions[:, action_space.POSITION] @ np.asarray(rotation, np.float32).T + position
        )
        return Trajectory(positions=positions, gripper=actions[:, action_space.GRIPPER])

    def unnormalise(
        self, actions: Float[np.ndarray, "steps 20"], mask: np.ndarray
    ) -> Float[np.ndarray, "steps 20"]:
        """Model units to metres and gripper command."""
        return normalise.unnormalise(actions, self.statistics.action, mask)
