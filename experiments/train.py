"""Trains one stage: python -m experiments.train --config=configs/metaworld.py --config.stage=action.

The same line trains on one device, on all devices of a machine, and with

    --simulated_devices=8              eight CPU devices in one process
    --processes=4                      four processes on this machine, started from here
    --processes=4 --process_id=I --coordinator=HOST:PORT    one of four, on any machine
    --processes=auto                   as TPU pods, SLURM, MPI or Kubernetes say

Several processes need config.pack.sequences to be a multiple of their number.
SIGTERM saves and ends with status 0; the same command continues.
"""

import os
from pathlib import Path

import jax
from absl import flags
from ml_collections import ConfigDict

from experiments.common import make_folder, run
from wallwm_jax.parallel.processes import Processes, join, launch, this_command, together
from wallwm_jax.train.loop import train
from wallwm_jax.train.run import build_run
from wallwm_jax.train.signals import StopSignal

WORDS = ("processes", "process_id", "coordinator")


def define_flags() -> None:
    """The flags that say which process this is; the environment may say it as well."""
    for name, words in zip(
        WORDS,
        (
            "how many processes train together, or auto",
            "which one this is",
            "HOST:PORT of process 0",
        ),
        strict=True,
    ):
        flags.DEFINE_string(name, None, f"{words}; default: WALLWM_{name.upper()}")
    flags.DEFINE_integer("simulated_devices", 0, "CPU devices that every process simulates")


def main(config: ConfigDict) -> None:
    """Trains config.stage to its last step, resuming what is there."""
    processes = Processes.of(
        {name: flags.FLAGS[name].value for name in WORDS},
        dict(os.environ),
        heartbeat_s=config.limits.heartbeat_s,
        devices=flags.FLAGS.simulated_devices,
    )
    if processes.launches:
        raise SystemExit(launch(processes, this_command()))
    join(processes)
    with together(), StopSignal() as stop:
        # While data is opened, too, a process alone may go at once; `train` then decides itself.
        stop.leave_at_once(jax.process_count() == 1)
        make_folder(Path(config.workdir), "--config.workdir")
        result = train(build_run(config))
    if jax.process_index() == 0:
        print(
            f"stage {config.stage}: {result['steps']} steps ({result['resumed_from']} were there), "
            f"{result['seconds']:.0f} s, parameters {result['params']}"
        )


if __name__ == "__main__":
    define_flags()
    run(main)
