"""Makes the Meta-World event dataset.

    python -m experiments.prepare_data --out=runs/demo/dataset

About two minutes for 300 episodes on two cores. Killed at any instant and
started again, it continues; complete, it is reused. Splits are by seed: train
from 0, validation from 100, test from 200.
"""

import argparse
import functools
import sys
import warnings
from collections.abc import Iterator, Sequence

from absl import logging

from wallwm_jax.episodes.record import Episode
from wallwm_jax.events import carve, runner
from wallwm_jax.sim import gl, tasks

SPLIT_SEEDS = {"train": 0, "validation": 100, "test": 200}
RECIPE_VERSION = 1  # raise when recording or carving changes what they make


def record(
    part: runner.Part, *, image_size: int, noise: float, max_steps: int
) -> Iterator[Episode | runner.Skipped]:
    """Expert episodes of one task; every other training seed is noisy.

    Noise shows how the expert comes back onto its path. Validation and test
    stay clean, so that they measure the task and not the noise.
    """
    # Imported in the process that simulates: mujoco binds its GL library on import.
    from wallwm_jax.sim.metaworld import MetaWorldEnv
    from wallwm_jax.sim.record import record_episode

    warnings.filterwarnings("ignore", module="metaworld")
    with MetaWorldEnv(part.task, image_size=image_size) as env:
        for seed in part.seeds:
            noisy = part.split == "train" and seed % 2 == 1
            episode = record_episode(
                env, seed, noise=noise if noisy else 0.0, max_steps=max_steps
            )
            yield episode or runner.Skipped(
                f"metaworld/{part.task}/{seed:06d}", "the expert did not finish the task"
            )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line -> options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="runs/demo/dataset", help="folder of the store")
    parser.add_argument("--tasks", default=",".join(tasks.TASKS), help="comma-separated names")
    parser.add_argument("--train_seeds", type=int, default=22, help="number of seeds, from 0")
    parser.add_argument("--validation_seeds", type=int, default=3, help="from 100")
    parser.add_argument("--test_seeds", type=int, default=5, help="from 200")
    parser.add_argument("--image_size", type=int, default=64, help="pixels")
    parser.add_argument("--noise", type=float, default=0.2, help="on odd training seeds")
    parser.add_argument("--max_steps", type=int, default=120, help="then the expert has failed")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--segmentation", choices=("behaviour", "fixed"), default="behaviour")
    parser.add_argument("--max_length", type=int, default=32, help="longest event, control steps")
    parser.add_argument("--chunk_length", type=int, default=16, help="of fixed segmentation")
    return parser.parse_args(argv)


def make_parts(options: argparse.Namespace) -> list[runner.Part]:
    """One part per split and task.

    Raises:
      ValueError: an unknown task, or more seeds than a split has room for.
    """
    parts = []
    for split, first in SPLIT_SEEDS.items():
        count = getattr(options, f"{split}_seeds")
        if not 0 <= count <= 100:
            raise ValueError(f"--{split}_seeds={count}: splits are 100 seeds apart; give 0..100")
        seeds = tuple(range(first, first + count))
        names = [tasks.task_spec(name).name for name in options.tasks.split(",")]
        parts += [runner.Part(name, split, seeds) for name in names if seeds]
    return parts


def make_recipe(options: argparse.Namespace) -> runner.Recipe:
    """How to record and to cut, with the settings that a later run compares."""
    if options.segmentation == "fixed":
        segment = functools.partial(carve.fixed_chunks, length=options.chunk_length)
    else:
        segment = functools.partial(carve.carve, max_length=options.max_length)
    recording = {name: getattr(options, name) for name in ("image_size", "noise", "max_steps")}
    cutting = {name: getattr(options, name) for name in ("segmentation", "max_length", "chunk_length")}
    return runner.Recipe(
        record=functools.partial(record, **recording),
        segment=segment,
        settings={"version": RECIPE_VERSION, "simulator": "metaworld", **recording, **cutting},
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Makes, continues or reuses the dataset; one line and exit code 1 on failure."""
    logging.set_verbosity(logging.INFO)
    options = parse(argv)
    try:
        gl.require_gl()
        runner.make_store(
            options.out, make_parts(options), make_recipe(options), options.processes
        )
    except (runner.StoreError, ValueError, OSError, gl.GLUnavailable) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
