"""From a checkpoint to a policy: nothing but the checkpoint is read, and the folders it names."""

from collections.abc import Mapping
from pathlib import Path

import jax
from etils import epath

from wallwm_jax.episodes import clock
from wallwm_jax.input.batch import BatchDims
from wallwm_jax.input.normalise import InputStatistics
from wallwm_jax.input.tokenise import WordTokeniser
from wallwm_jax.models.codec import Codec
from wallwm_jax.models.patch_codec import PatchCodec
from wallwm_jax.rollout.inference import InferenceConfig
from wallwm_jax.rollout.policy import EventPolicy
from wallwm_jax.train.build import NONE, denoiser_from_meta
from wallwm_jax.train.pretrained import reopen
from wallwm_jax.train.saved import latest_step, read_meta, read_params


def load_policy(
    folder: epath.Path | Path | str,
    config: InferenceConfig,
    *,
    sequences: int = 1,
    embodiment: str = "sawyer",
    pretrained: Mapping[str, str] = NONE,
) -> EventPolicy:
    """Loads the newest checkpoint of a stage that trained the action tower.

    Args:
      folder: of the run's checkpoints.
      config: steps of inference.
      sequences: events per batch (1 for closed loop).
      embodiment: whose action dimensions are controlled.
      pretrained: where the folders that the run inherited from lie now, by slot;
        those not named (or "") lie where they lay.

    Raises:
      CheckpointError: there is no checkpoint.
      PretrainedError: a folder that it needs is missing, or holds other weights.
    """
    step = latest_step(folder)
    meta = read_meta(folder, step, verify=False)
    sources = {
        slot: reopen(slot, record, pretrained.get(slot))
        for slot, record in meta.get("pretrained", {}).items()
        if slot != "video"  # the tower itself is in the checkpoint
    }
    # On the device once, not at every call.
    params = jax.device_put(read_params(folder, step, verify=False))
    params |= {slot: source.load() for slot, source in sources.items()}
    denoiser = denoiser_from_meta(meta["model"])
    page = meta["input"]
    codec = Codec(sources["codec"].module if "codec" in sources else PatchCodec(**page["codec"]))
    statistics = InputStatistics.from_json(page["statistics"])
    frames = denoiser.action_config.max_latent_frames
    side = page["image_size"] // codec.space_factor
    dims = BatchDims(
        sequences=sequences,
        views=len(page["views"]),
        frames=frames,
        height=side,
        width=side,
        channels=codec.channels,
        actions=clock.longest_event(frames),
        events=1,
        state=len(statistics.state.mean),
        text=page["text_length"],
    )
    return EventPolicy(
        denoiser=denoiser,
        params=params,
        config=config,
        codec=codec,
        statistics=statistics,
        tokeniser=sources["text"].tokeniser()
        if "text" in sources
        else WordTokeniser.from_json(page["tokeniser"]),
        views=tuple(page["views"]),
        embodiment=embodiment,
        dims=dims,
    )
