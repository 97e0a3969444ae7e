"""From a checkpoint to a policy: nothing but the checkpoint is read."""

from pathlib import Path

from wallwm_jax.episodes import clock
from wallwm_jax.input.batch import BatchDims
from wallwm_jax.input.normalise import InputStatistics
from wallwm_jax.input.tokenise import WordTokeniser
from wallwm_jax.models.patch_codec import PatchCodec
from wallwm_jax.rollout.inference import InferenceConfig
from wallwm_jax.rollout.policy import EventPolicy
from wallwm_jax.train.build import denoiser_from_meta
from wallwm_jax.train.checkpoint import latest_step, read_meta, read_params


def load_policy(
    folder: Path | str, config: InferenceConfig, *, sequences: int = 1, embodiment: str = "sawyer"
) -> EventPolicy:
    """Loads the newest checkpoint of a stage that trained the action tower.

    Args:
      folder: of the run's checkpoints.
      config: steps of inference.
      sequences: events per batch (1 for closed loop).
      embodiment: whose action dimensions are controlled.

    Raises:
      CheckpointError: there is no checkpoint.
    """
    step = latest_step(folder)
    meta = read_meta(folder, step)
    params = read_params(folder, step)
    denoiser = denoiser_from_meta(meta["model"])
    page = meta["input"]
    statistics = InputStatistics.from_json(page["statistics"])
    frames = denoiser.action_config.max_latent_frames
    side = page["image_size"] // page["codec"]["patch"]
    dims = BatchDims(
        sequences=sequences,
        views=len(page["views"]),
        frames=frames,
        height=side,
        width=side,
        channels=page["codec"]["channels"],
        actions=clock.longest_event(frames),
        events=1,
        state=len(statistics.state.mean),
        text=page["text_length"],
    )
    return EventPolicy(
        denoiser=denoiser,
        params=params,
        config=config,
        codec=PatchCodec(channels=page["codec"]["channels"], patch=page["codec"]["patch"]),
        statistics=statistics,
        tokeniser=WordTokeniser.from_json(page["tokeniser"]),
        views=tuple(page["views"]),
        embodiment=embodiment,
        dims=dims,
    )
