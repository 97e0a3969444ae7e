"""What is done to the toy run, one function a row: hurt it, let it finish, compare.

Every function takes (toy, rounds, rng) and gives an `Outcome`; what differs from
the run nobody hurt is one line each, with the file, the step and what to do.
"""

import random
import resource
import shutil
import time
from collections.abc import Iterator
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

from experiments.chaos_compare import UNFINISHED, Life, Outcome, compared, lives, whole_steps
from experiments.chaos_toy import (
    STAGE,
    WAIT_S,
    Changes,
    Toy,
    checkpoints,
    ended,
    losses,
    wait_for_step,
)
from wallwm_jax.train.checkpoint import CheckpointError
from wallwm_jax.train.saved import latest_step, read_params
from wallwm_jax.train.seal import damage, folder_of


def killed(toy: Toy, rounds: int, rng: random.Random, changes: Changes | None = None) -> Outcome:
    """R1: SIGKILL at random instants; each loss of each step and the last state are equal."""
    bad, kills, again = [], 0, 0
    # In steps, not seconds: a slow machine must come past its checkpoints too.
    draw = partial(rng.randint, 1, 2 * toy.every)
    for life in lives(toy, changes or {}, bad, lambda: kills < rounds, draw):
        time.sleep(rng.uniform(0, 0.05))
        if life.process.exitcode is not None:
            continue  # it came to its end in the meantime
        life.process.kill()
        ended(life.process)
        kills += 1
        again += len(losses(life.folder)) - max(whole_steps(life.folder), default=0)
    return Outcome(kills, bad, f"{again} steps taken again")


def killed_with_workers(toy: Toy, rounds: int, rng: random.Random) -> Outcome:
    """R2: as R1 with two reading processes and gradients of two micro-batches.

    It is compared with a run of the same settings; that the order of the data does
    not depend on the processes is R13's.
    """
    return killed(toy, rounds, rng, WORKERS | ACCUMULATED)


WORKERS = {"pack.workers": 2}
ACCUMULATED = {f"stages.{STAGE}.accumulate": 2}


def terminated(toy: Toy, rounds: int, rng: random.Random) -> Outcome:
    """R3: SIGTERM; the step in hand is saved and the exit status is 0 within ten seconds."""
    bad, done, slowest = [], 0, 0.0
    draw = partial(rng.randint, 1, 2 * toy.every)
    for life in lives(toy, {}, bad, lambda: done < rounds, draw):
        time.sleep(rng.uniform(0, 0.05))
        if life.process.exitcode is not None:
            continue
        life.process.terminate()
        began = time.monotonic()
        life.process.join(10)
        slowest = max(slowest, time.monotonic() - began)
        done += 1
        if status := ended(life.process):
            bad.append(f"{life.folder}: SIGTERM gave status {status} after {slowest:.1f} s, not 0")
        elif (logged := len(losses(life.folder))) != latest_step(checkpoints(life.folder)):
            bad.append(f"{life.folder}: SIGTERM lost steps; {logged} were logged")
    return Outcome(done, bad, f"slowest {slowest:.1f} s")


def killed_while_saving(toy: Toy, rounds: int, rng: random.Random) -> Outcome:
    """R4: SIGKILL within half a second of the beginning of a save; at most one interval is lost.

    What it left unfinished is gone when the next start has taken a step.
    """
    bad, kills, inside, left = [], 0, 0, {}
    for life in lives(toy, {}, bad, lambda: kills < rounds):
        bad += [
            f"{path}: left by a kill and still there after the next start"
            for path, number in _unfinished(life.folder).items()
            if left.get(path) == number
        ]
        begun = _wait_for_save(life)
        if begun is None:
            continue
        # Half of them soon, as a save of the toy takes less than a tenth of a second.
        time.sleep(rng.uniform(0, 0.5 if kills % 2 else 0.05))
        if life.process.exitcode is not None:
            continue
        life.process.kill()
        ended(life.process)
        kills += 1
        left = _unfinished(life.folder)
        inside += bool(left)
        last = max(whole_steps(life.folder), default=0)
        if last < begun - toy.every:
            bad.append(
                f"{life.folder}: killed in the save of step {begun}, but only {last} is whole"
            )
    return Outcome(kills, bad, f"{inside} inside the write")


def _unfinished(folder: Path) -> dict[Path, int]:
    """Folders of steps that were not written to their end, and their inodes."""
    found = {}
    for path in checkpoints(folder).glob(UNFINISHED):
        try:
            found[path] = path.stat().st_ino
        except FileNotFoundError:
            pass  # finished in the meantime
    return found


def _wait_for_save(life: Life) -> int | None:
    """The step that a process has begun to save; None when it ends without."""
    deadline = time.monotonic() + WAIT_S
    while life.process.is_alive() and time.monotonic() < deadline:
        for path in checkpoints(life.folder).glob(UNFINISHED):
            return int(path.name.split(".")[0])
        time.sleep(0.001)
    return None


def damaged(toy: Toy, rounds: int, rng: random.Random) -> Outcome:
    """R5: flipped bits, truncations, each file deleted, empty and half-copied newer steps.

    The files are looked at as a restore would, which is most of `rounds`; then runs
    are continued from folders whose newest step is damaged.
    """
    reference = toy.reference()
    folder = toy.fresh("damaged")
    shutil.copytree(checkpoints(reference), checkpoints(folder), dirs_exist_ok=True)
    step = folder_of(checkpoints(folder) / str(toy.steps))
    names = sorted(str(p.relative_to(step)) for p in Path(step).rglob("*") if p.is_file())
    bad = [f"{step}: whole, but {line}" for line in damage(step)]
    kinds = ["flip"] * (rounds * 4 // 5) + ["truncate"] * (rounds - rounds * 4 // 5)
    for name, kind in [(rng.choice(names), kind) for kind in kinds] + [
        (n, "delete") for n in names
    ]:
        path = Path(step / name)
        whole = path.read_bytes()
        _hurt(path, kind, rng)
        if [line.split(" ")[0] for line in damage(step)] != [name]:
            bad.append(f"{path}: {kind} was not noticed; damage() must name the file")
        path.write_bytes(whole)
    bad += _refusals(step)
    for harm in ("flip", "empty", "half"):
        bad += _continued(toy, reference, harm, rng)
    return Outcome(len(kinds) + len(names) + 4, bad, f"{len(names)} files a step")


def _hurt(path: Path, kind: str, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if kind == "flip":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "truncate":
        del data[rng.randrange(len(data)) :]
    path.unlink() if kind == "delete" else path.write_bytes(bytes(data))


def _refusals(step: Path) -> list[str]:
    """A step that is asked for by number is refused when it is damaged."""
    path = max((p for p in Path(step).rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    try:
        read_params(step.parent, int(step.name))
    except CheckpointError as error:
        return [] if path.name in str(error) else [f"{path}: refused without its name: {error}"]
    finally:
        path.write_bytes(whole)
    return [f"{path}: a step that was asked for was read although it is damaged"]


def _continued(toy: Toy, reference: Path, harm: str, rng: random.Random) -> list[str]:
    """A run whose newest step is damaged goes on from the one before and ends equal."""
    folder = toy.fresh(harm)
    shutil.copytree(reference / STAGE, folder / STAGE)
    for path in reference.glob("batches-*.jsonl"):
        shutil.copy(path, folder)
    newest = checkpoints(folder) / str(toy.steps)
    files = [p for p in newest.rglob("*") if p.is_file()]
    if harm == "flip":
        _hurt(max(files, key=lambda p: p.stat().st_size), harm, rng)
    elif harm == "half":
        for path in files[::2]:
            path.unlink()
    else:
        shutil.rmtree(newest)
        newest.mkdir()
    bad = compared(toy, folder, reference, toy.finish(folder))
    told = (folder / "child.log").read_text()
    if f"{newest} is damaged" not in told:
        bad.append(f"{newest}: {harm}: passed over without a word in {folder / 'child.log'}")
    return bad


def full_disk(toy: Toy, rounds: int, rng: random.Random) -> Outcome:
    """R6: files cannot grow for a while; the run says so, goes on, and the next save works."""
    reference, bad = toy.reference(), []
    for _ in range(rounds):
        folder = toy.fresh("full")
        process = toy.start(folder)
        wait_for_step(process, folder)
        time.sleep(rng.uniform(0, 0.2))
        _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        # More than the log has yet, less than the largest files of a step.
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (80_000, hard))
        told = _wait_for_text(process, folder / "child.log", "could not be saved")
        if process.is_alive():
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        process.join(WAIT_S)
        bad += compared(toy, folder, reference, ended(process))
        if not told:
            bad.append(f"{folder}: a save that failed was not told in {folder / 'child.log'}")
    return Outcome(rounds, bad)


def _wait_for_text(process: BaseProcess, path: Path, text: str) -> bool:
    deadline = time.monotonic() + WAIT_S
    while process.is_alive() and time.monotonic() < deadline:
        if text in path.read_text():
            return True
        time.sleep(0.01)
    return text in path.read_text()


EIGHT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
MESHES = {
    "8x1": {"mesh.fsdp": 8, "mesh.tensor": 1},
    "2x2": {"mesh.fsdp": 2, "mesh.tensor": 2},
    "2x1": {"mesh.fsdp": 2, "mesh.tensor": 1},
    "1x1": {"mesh.fsdp": 1, "mesh.tensor": 1},
}


def other_meshes(toy: Toy, rounds: int, rng: random.Random) -> Outcome:
    """R7: saved on 4x2 of eight simulated devices, continued on others.

    A restore compares the sum of every array with the one from memory, so going on
    at all means equal bits; the loss of the next step may differ by 1e-5 of itself.
    """
    del rng
    bad, worst, steps = [], 0.0, toy.every
    sized = {"pack.sequences": 8}
    begun = toy.fresh("mesh")
    first = sized | {"mesh.fsdp": 4, "mesh.tensor": 2, f"stages.{STAGE}.steps": steps}
    if status := toy.finish(begun, first, EIGHT):
        return Outcome(0, [f"{begun}: ended with status {status}; read {begun / 'child.log'}"])
    expected = None
    names = ["4x2", *MESHES][: rounds + 1]
    for name in names:
        folder = toy.root / f"mesh-{name}"
        shutil.copytree(begun, folder)
        mesh = MESHES.get(name, {"mesh.fsdp": 4, "mesh.tensor": 2})
        count = mesh["mesh.fsdp"] * mesh["mesh.tensor"]
        changes = sized | mesh | {f"stages.{STAGE}.steps": steps + 1}
        devices = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}
        if status := toy.finish(folder, changes, devices):
            bad.append(f"{folder}: 4x2 -> {name}: status {status}; read {folder / 'child.log'}")
            continue
        loss = float.fromhex(losses(folder)[steps])
        expected = loss if expected is None else expected
        worst = max(worst, abs(loss / expected - 1))
        if worst > 1e-5:
            bad.append(f"{folder}: 4x2 -> {name}: loss {loss} and not {expected}")
    return Outcome(len(names) - 1, bad, f"next loss within {worst:.1e}")


def not_finite(toy: Toy, rounds: int, rng: random.Random) -> Outcome:
    """R10: a NaN in a batch skips that update; too many in a row end the run, none is saved."""
    bad, short = [], {f"stages.{STAGE}.steps": 30, "limits.nonfinite": 3}
    for _ in range(rounds):
        at = rng.randrange(5, 25)
        folder = toy.fresh("nan")
        if status := toy.finish(folder, short, {}, (at,)):
            bad.append(f"{folder}: one NaN at step {at} gave status {status}; read its child.log")
            continue
        # `read_params` refuses what is not finite.
        whole = read_params(checkpoints(folder), latest_step(checkpoints(folder)))
        if not all(np.isfinite(x).all() for x in _leaves(whole)):
            bad.append(f"{checkpoints(folder)}: holds parameters that are not finite")
        before = {step: loss for step, loss in losses(folder).items() if step < at}
        if before != {s: x for s, x in losses(toy.reference(short)).items() if s < at}:
            bad.append(f"{folder}: losses before the NaN at step {at} differ")
        folder = toy.fresh("nan")
        status = toy.finish(folder, short, {}, tuple(range(at, 30)))
        if not status:
            bad.append(f"{folder}: NaN from step {at} on did not end the run")
        if any(step > at + 3 for step in whole_steps(folder)):
            bad.append(f"{folder}: steps were saved after NaN from step {at} on")
    return Outcome(2 * rounds, bad)


def _leaves(tree: dict) -> Iterator[np.ndarray]:
    for value in tree.values():
        yield from _leaves(value) if isinstance(value, dict) else [value]


def repeated(toy: Toy, rounds: int, rng: random.Random) -> Outcome:
    """R13: again, and with reading processes: equal losses and batches; another seed: others."""
    del rng
    reference, bad = toy.reference(), []
    for changes in ({}, WORKERS)[:rounds]:
        folder = toy.fresh("again")
        bad += compared(toy, folder, reference, toy.finish(folder, changes))
    other = toy.fresh("seed")
    toy.finish(other, {"seed": 1, f"stages.{STAGE}.steps": 10})
    if not losses(other) or losses(other)[0] == losses(reference)[0]:
        bad.append(f"{other}: another seed gave the same first loss, or none")
    return Outcome(min(rounds, 2) + 1, bad)
