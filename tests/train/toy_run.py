"""A whole run on synthetic episodes: dataset, encoding and config, in seconds.

Also a command, so that tests can kill it:  python tests/train/toy_run.py FOLDER STAGE STEPS
"""

import dataclasses
import sys
from pathlib import Path

from ml_collections import ConfigDict

from configs.metaworld import get_config
from wallwm_jax.events import build as events_build
from wallwm_jax.events.carve import carve
from wallwm_jax.events.store import EventWriter
from wallwm_jax.train import build
from wallwm_jax.train.encode import encode_dataset
from wallwm_jax.train.loop import train
from wallwm_jax.train.run import build_run

SPLITS = {"train": range(12), "validation": range(100, 102), "test": range(200, 203)}

SMALL = {
    "codec.channels": 4,
    "codec.clips": 8,
    "pack.sequences": 2,
    "pack.frames": 6,
    "pack.text_length": 10,
    "pack.window": 16,
    "text.vocabulary": 64,
    "objective.action_draws": 2,
    "objective.sketch_steps": 1,
    "rollout.video_steps": 1,
    "rollout.action_steps": 2,
    "evaluate.sequences": 4,
    "evaluate.dream_steps": 2,
    "evaluate.examples": 2,
}


def toy_config(folder: Path) -> ConfigDict:
    """The demo's config with everything small; sizes differ from each other on purpose."""
    config = get_config()
    config.workdir = str(folder)
    config.update_from_flattened_dict(SMALL)
    config.text.update(
        dict(width=12, heads=2, head_dim=6, layers=1, ffn=16),
    )
    config.video.update(
        dict(
            width=32,
            heads=2,
            layers=2,
            ffn=48,
            in_channels=4,
            out_channels=4,
            text_width=12,
            unroll=1,
        )
    )
    config.action.update(dict(width=24, heads=2, ffn=32, unroll=1))
    for name in config.stages:
        config.stages[name].update(dict(steps=12, warmup=2, save_every=4, log_every=3))
    return config


def make_data(config: ConfigDict, segmentation: str = "behaviour") -> None:
    """A store of toy episodes, encoded."""
    from toy_episode import pull_episode

    dataset = build.dataset_folder(config, segmentation)
    dataset.parent.mkdir(parents=True, exist_ok=True)
    with EventWriter(dataset) as writer:
        for split, seeds in SPLITS.items():
            for seed in seeds:
                # Lengths vary with the seed, or there would be nothing to pack.
                episode = pull_episode(seed, tail=6 + seed % 5)
                spans = carve(episode, max_length=config.data.max_length)
                for event in events_build.events_of(episode, spans):
                    writer.add(dataclasses.replace(event), split)
    encode_dataset(
        dataset,
        build.encoded_folder(config, segmentation),
        build.build_codec(config),
        clips=config.codec.clips,
    )


def main() -> None:
    """Trains one stage of the toy run in FOLDER for STEPS steps, saving often."""
    config = toy_config(Path(sys.argv[1]))
    config.stage = sys.argv[2]
    config.stages[config.stage].update(dict(steps=int(sys.argv[3]), save_every=10, log_every=2))
    train(build_run(config))


if __name__ == "__main__":
    main()
