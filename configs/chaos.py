"""A run so small that it can be killed a hundred times.

    python -m experiments.chaos --smoke

trains it again and again on synthetic events and hurts it in between; it learns
nothing worth having. Sizes differ from each other and divide over eight devices.
One core, warm compilation cache: about six core seconds to the first step.
"""

from ml_collections import ConfigDict

from configs import metaworld


def get_config() -> ConfigDict:
    """The demo's experiment with everything small."""
    config = metaworld.get_config()
    config.workdir = "runs/chaos/reference"
    config.codec.update(dict(channels=4, clips=8))
    config.pack.update(dict(sequences=2, frames=6, text_length=8, window=16))
    config.text.update(dict(width=16, heads=2, head_dim=8, layers=1, ffn=24, vocabulary=64))
    config.video.update(
        dict(width=32, heads=2, layers=1, ffn=48, in_channels=4, out_channels=4, text_width=16)
    )
    config.video.unroll = config.action.unroll = 1
    config.action.update(dict(width=24, heads=2, ffn=32))
    for stage in config.stages.values():
        stage.update(dict(steps=120, warmup=5, save_every=10, log_every=1))
    return config
