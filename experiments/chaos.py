"""Kills, damages and starves a small run, and compares what is left with a run nobody hurt.

    python -m experiments.chaos --smoke                 # rows that compile nothing more
    python -m experiments.chaos --rounds R1 --kills 20  # about six core seconds a kill
    python -m experiments.chaos                         # the full figures, about an hour

One row for each kind of harm; status 1 when anything differs. All processes share
one core: the number of threads changes the bits of a sum. Every line of a failure
names the file, the step and where to read on; the folder of runs is kept then.
"""

import argparse
import dataclasses
import importlib
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Row:
    """One kind of harm: its name, its function in `chaos_rounds` (or `module`), and how often."""

    what: str
    function: str
    smoke: int
    full: int
    kills: bool = False
    module: str = "chaos_rounds"


ROWS = {
    "R1": Row("SIGKILL at random instants", "killed", 5, 100, kills=True),
    "R2": Row("SIGKILL, two readers, two micro-batches", "killed_with_workers", 0, 20, kills=True),
    "R3": Row("SIGTERM", "terminated", 1, 20),
    "R4": Row("SIGKILL while saving", "killed_while_saving", 2, 100, kills=True),
    "R5": Row("damaged files and steps", "damaged", 250, 250),
    "R6": Row("full disk", "full_disk", 1, 10),
    "R7": Row("another mesh", "other_meshes", 0, 4),
    "R8": Row("fewer processes", "fewer_processes", 0, 1, module="chaos_fellows"),
    "R9": Row("one of four fails, each way", "one_fails", 0, 10, True, "chaos_fellows"),
    "R10": Row("NaN in batches", "not_finite", 0, 5),
    "R13": Row("same seed, other readers", "repeated", 0, 2),
}
"""The table; a new kind of harm is a line here and a function."""


def main(argv: Sequence[str]) -> int:
    """Runs the rows and prints the table; the exit status."""
    parser = argparse.ArgumentParser(
        "experiments.chaos", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="few rounds, and only of some rows")
    parser.add_argument("--kills", type=int, help="rounds of the rows that kill")
    parser.add_argument("--rounds", default=",".join(ROWS), help="rows to run, e.g. R1,R5")
    parser.add_argument("--seed", type=int, default=0, help="of the random instants")
    args = parser.parse_args(argv)
    chosen = args.rounds.split(",")
    if unknown := [name for name in chosen if name not in ROWS]:
        parser.error(f"--rounds {unknown[0]!r} is unknown; choose from {','.join(ROWS)}")
    settle()
    folder = Path(tempfile.mkdtemp(prefix="wallwm-chaos-"))
    bad = run(folder, {name: ROWS[name] for name in chosen}, args)
    if bad:
        print("\n".join(f"error: {line}" for line in bad), file=sys.stderr)
        print(f"{len(bad)} differences; the runs are kept in {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


def settle() -> None:
    """One core and a compilation cache, for this process and those it starts."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(".cache/jax").absolute()))
    # A restart compiles nothing: small programs are kept as well.
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


def run(folder: Path, rows: dict[str, Row], args: argparse.Namespace) -> list[str]:
    """Runs rows and prints one line for each; all differences."""
    # Imported only now: jax reads the environment when it is imported.
    from experiments.chaos_toy import Toy
    from experiments.common import quiet

    quiet()
    began = time.monotonic()
    toy, every = Toy(folder), []
    toy.reference()
    print(f"undisturbed run: {toy.steps} steps in {time.monotonic() - began:.0f} s")
    print(f"{'row':4} {'harm':40} {'rounds':>6} {'differ':>6} {'seconds':>7}  remark")
    for name, row in rows.items():
        began = time.monotonic()
        rounds = row.smoke if args.smoke else row.full
        rounds = args.kills if row.kills and args.kills is not None else rounds
        if not rounds:
            continue
        harm: Callable = getattr(importlib.import_module(f"experiments.{row.module}"), row.function)
        outcome = harm(toy, rounds, random.Random(f"{name} {args.seed}"))
        seconds = time.monotonic() - began
        print(
            f"{name:4} {row.what:40} {outcome.rounds:6} {len(outcome.bad):6} {seconds:7.0f}  {outcome.note}",
            flush=True,
        )
        every += outcome.bad
    return every


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
