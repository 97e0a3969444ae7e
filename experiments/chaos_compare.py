"""What every kind of harm shares: a run that is hurt again and again, compared with one nobody hurt.

What differs is one line each, with the file, the step and what to do.
"""

import dataclasses
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

from experiments.chaos_toy import (
    Changes,
    Fellows,
    Toy,
    batches,
    checkpoints,
    ended,
    losses,
    state_sha,
    wait_for_step,
)
from wallwm_jax.train.seal import damage, folder_of, steps_in

UNFINISHED = "*.orbax-checkpoint-tmp*"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Of one row: rounds that were run, what differed (nothing is good), a remark."""

    rounds: int
    bad: list[str]
    note: str = ""


def other_losses(folder: Path, reference: Path) -> list[str]:
    """Steps whose logged loss is not the reference's."""
    ours, theirs = losses(folder), losses(reference)
    wrong = [step for step, loss in ours.items() if theirs.get(step) != loss]
    return [
        f"{folder}: loss of step {step} is {ours[step]} and not {theirs.get(step)}; compare with {reference}"
        for step in wrong[:3]
    ]


def other_batches(folder: Path, reference: Path) -> list[str]:
    """Batches that are not the reference's, by the SHA-1 of their sequences."""
    theirs = {(number, reader): rows for number, reader, rows, _ in batches(reference)}
    wrong = [
        (number, reader)
        for number, reader, rows, _ in batches(folder)
        if theirs.get((number, reader)) != rows
    ]
    return [
        f"{folder}: batch {number} of process {reader} has other sequences; compare batches-{reader}.jsonl "
        f"with {reference}'s"
        for number, reader in wrong[:3]
    ]


def compared(toy: Toy, folder: Path, reference: Path, status: int) -> list[str]:
    """What is wrong with a run that was hurt and has come to its end."""
    if status:
        return [f"{folder}: ended with status {status}; read {folder / 'child.log'}"]
    bad = other_losses(folder, reference) + other_batches(folder, reference)
    if len(losses(folder)) != toy.steps:
        bad.append(f"{folder}: logged {len(losses(folder))} of {toy.steps} steps")
    ours, theirs = ({page[:2] for page in batches(run)} for run in (folder, reference))
    if ours != theirs:
        bad.append(f"{folder}: read {len(ours)} of the {len(theirs)} batches that {reference} read")
    if state_sha(folder) != state_sha(reference):
        bad.append(f"{folder}: arrays or data position of the last step differ from {reference}'s")
    if left := list(checkpoints(folder).glob(UNFINISHED)):
        bad.append(
            f"{left[0]}: an unfinished step was left; it should be removed at the next start"
        )
    return bad


@dataclasses.dataclass
class Life:
    """A run that is hurt until it has come to its end."""

    folder: Path
    process: BaseProcess | Fellows


def lives(
    toy: Toy,
    changes: Changes,
    bad: list[str],
    more: Callable[[], bool],
    draw: Callable[[], int] = lambda: 1,
    reference: Path | None = None,
) -> Iterator[Life]:
    """Started processes that have taken a few steps (`draw` says how many), while `more` are wanted.

    The caller ends each one. A run that comes to its end by itself is compared,
    and a new one begins; the last one is let finish. `reference` is for changes that
    change no number.
    """
    reference = reference or toy.reference(changes)
    folder = toy.fresh()
    while more():
        process = toy.start(folder, changes)
        if wait_for_step(process, folder, draw()):
            yield Life(folder, process)
            bad += other_losses(folder, reference) + other_batches(folder, reference)
        else:
            bad += compared(toy, folder, reference, ended(process))
            folder = toy.fresh()
    bad += compared(toy, folder, reference, toy.finish(folder, changes))


def whole_steps(folder: Path) -> list[int]:
    """Steps of a run that nothing is wrong with."""
    where = folder_of(checkpoints(folder))
    return [step for step in steps_in(where) if not damage(where / str(step))]
