"""Trains one stage: python -m experiments.train --config=configs/metaworld.py --config.stage=action."""

from pathlib import Path

from ml_collections import ConfigDict

from experiments.common import make_folder, run
from wallwm_jax.train.loop import train
from wallwm_jax.train.run import build_run


def main(config: ConfigDict) -> None:
    """Trains config.stage to its last step, resuming what is there."""
    make_folder(Path(config.workdir), "--config.workdir")
    result = train(build_run(config))
    print(
        f"stage {config.stage}: {result['steps']} steps ({result['resumed_from']} were there), "
        f"{result['seconds']:.0f} s, parameters {result['params']}"
    )


if __name__ == "__main__":
    run(main)
