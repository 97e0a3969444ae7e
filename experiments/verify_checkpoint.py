"""Says which checkpoints are whole, and names each damaged file of those that are not.

    python -m experiments.verify_checkpoint runs/metaworld/video/checkpoints

FOLDER holds the steps of a run, here or in an object store (gs://...). Every file is
read and compared with the seal of its step, then every array of the newest whole step with
the sum that was taken in memory. Status 1 when a step is damaged; nothing is changed.
"""

import argparse
import sys
from collections.abc import Sequence

from experiments.common import EXPECTED, one_line_errors, quiet
from wallwm_jax.train.saved import read_params
from wallwm_jax.train.seal import CheckpointError, damage, folder_of, steps_in


def main(argv: Sequence[str]) -> int:
    """Prints a line for each step, and one for each damaged file; the exit status."""
    parser = argparse.ArgumentParser(
        "experiments.verify_checkpoint",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("folder", help="of a run's checkpoints")
    folder = folder_of(parser.parse_args(argv).folder)
    quiet()
    with one_line_errors(*EXPECTED):
        if not (steps := steps_in(folder)):
            raise CheckpointError(
                f"no checkpoint in {folder}; name the folder that holds the steps"
            )
        found = {step: damage(folder / str(step)) for step in steps}
        whole = [step for step, lines in found.items() if not lines]
        for step, lines in found.items():
            print(f"step {step}: {f'{len(lines)} files are damaged' if lines else 'whole'}")
            print("".join(f"  {folder / str(step)}: {line}\n" for line in lines), end="")
        if whole:
            read_params(folder, whole[-1])
            print(f"arrays of step {whole[-1]} are what was in memory")
    return int(len(whole) < len(steps))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
