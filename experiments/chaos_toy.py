"""The run that `experiments.chaos` hurts: its data, its processes, and what they leave.

Children are forked from a server that has imported everything and started nothing
(multiprocessing's "forkserver"), so a restart costs the trace and a look into the
compilation cache, not the imports as well.
"""

import atexit
import copy
import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax._src import compiler, distributed
from ml_collections import ConfigDict
from tqdm import tqdm

from configs.chaos import get_config
from experiments.common import EXPECTED, one_line_errors, quiet
from wallwm_jax.episodes.record import TRACKS, Episode, EventSpan
from wallwm_jax.errors import UserError
from wallwm_jax.events.build import events_of
from wallwm_jax.events.store import EventWriter
from wallwm_jax.input.batch import Batch
from wallwm_jax.input.loader import Loader
from wallwm_jax.parallel.processes import Processes, free_port, join, together
from wallwm_jax.train import build
from wallwm_jax.train.encode import encode_dataset
from wallwm_jax.train.loop import train
from wallwm_jax.train.run import build_run
from wallwm_jax.train.saved import latest_step

STAGE = "video"
WAIT_S = 600
"""Longest wait for a child's next step or its end, in seconds."""

CAPTIONS = ("open the drawer", "move above the handle", "stand still")
SPLITS = {"train": range(12), "validation": range(100, 102), "test": range(200, 202)}

Changes = Mapping[str, Any]
"""Keys of the config, with dots, and their values."""


def toy_episode(seed: int) -> Episode:
    """A hand on a straight line under coloured squares; its length follows from the seed."""
    rng, steps = np.random.default_rng(seed), 30 + seed % 5
    squares = rng.integers(0, 255, (steps + 1, 2, 2, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    line = np.linspace([0.0, 0.5, 0.1], [0.2, 0.6, 0.3], steps + 1).astype(np.float32)
    return Episode(
        episode_id=f"chaos/{seed:06d}",
        task="pull",
        seed=seed,
        embodiment="sawyer",
        instruction=CAPTIONS[0],
        control_hz=40.0,
        success=True,
        frames={"ego": squares},
        cameras={},
        state=np.arange((steps + 1) * 3, dtype=np.float32).reshape(-1, 3),
        target_position=line[:, None],
        target_rotation=np.tile(np.eye(3, dtype=np.float32), (steps + 1, 1, 1, 1)),
        gripper_command=np.ones((steps, 1), np.float32),
        action_mask=np.arange(20) < 10,
        signals={},
        nouns={},
    )


def make_data(config: ConfigDict) -> None:
    """A store of toy events, encoded; what is there already is kept."""
    dataset, encoded = (
        of(config, "behaviour") for of in (build.dataset_folder, build.encoded_folder)
    )
    if not dataset.is_dir():
        dataset.parent.mkdir(parents=True, exist_ok=True)
        with EventWriter(dataset) as writer:
            for split, seeds in SPLITS.items():
                for seed in seeds:
                    episode = toy_episode(seed)
                    edges = [0, 9 + seed % 4, 20, episode.steps]
                    spans = [
                        EventSpan(start=a, end=b, label="reach") for a, b in zip(edges, edges[1:])
                    ]
                    texts = [dict.fromkeys(TRACKS, text) for text in CAPTIONS]
                    for event in events_of(episode, spans, captions=texts):
                        writer.add(event, split)
    encode_dataset(dataset, encoded, build.build_codec(config), clips=config.codec.clips)


HANG = signal.SIGUSR1
"""Ends a child's Python thread for good, while its other threads, heartbeat among them, live."""


def child(folder: str, changes: dict, environment: dict, nan_at: tuple[int, ...]) -> None:
    """Trains the toy in this process, as `experiments.train` would; output to FOLDER/child.log.

    Args:
      folder: the run's workdir, with its data.
      changes: to the config.
      environment: set before a device is looked for; it may make this one of several
        processes (see `wallwm_jax.parallel.processes`).
      nan_at: batches that arrive with a NaN.
    """
    log = os.open(Path(folder) / "child.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(environment)
    signal.signal(HANG, _hang)
    # tqdm's own lock is for several processes too: a semaphore that a killed child leaves behind.
    tqdm.set_lock(threading.RLock())
    quiet()
    config = get_config()
    config.workdir, config.stage = folder, STAGE
    config.update_from_flattened_dict(changes)
    Loader.__next__ = _watched(Loader.__next__, Path(folder), nan_at)
    processes = Processes.of({}, dict(os.environ), heartbeat_s=config.limits.heartbeat_s)
    try:
        with one_line_errors(*EXPECTED):
            join(processes)
            _keep_compiled()
            with together():
                train(build_run(config))
    except Exception:
        traceback.print_exc()
        raise
    finally:
        if processes.count != 1:
            # multiprocessing leaves without these; fellows say goodbye to each other there.
            atexit._run_exitfuncs()


def _keep_compiled() -> None:
    """Every process writes what it compiles to the cache, where jax lets the first one only.

    On CPU the first one's programs are of no use to the others (their keys differ), which
    would compile anew at each start.
    """
    mine = distributed.global_state.process_id
    write = compiler._cache_write

    def written(*args: Any) -> None:
        distributed.global_state.process_id = 0
        try:
            write(*args)
        finally:
            distributed.global_state.process_id = mine

    compiler._cache_write = written


def _hang(*_: object) -> NoReturn:
    while True:
        time.sleep(1)


def _watched(give: Callable, folder: Path, nan_at: tuple[int, ...]) -> Callable:
    """The loader's `__next__` that writes down each batch, and puts a NaN into some."""

    def watched(loader: Loader) -> Batch:
        number, batch = loader.get_state()["batch"], give(loader)
        _write_down(folder, number, batch)
        if number not in nan_at:
            return batch
        latents = batch.latents.copy()
        latents[0] = np.nan
        return dataclasses.replace(batch, latents=latents)

    return watched


def _write_down(folder: Path, number: int, batch: Batch) -> None:
    """Adds a line to batches-PROCESS.jsonl: SHA-1 of every sequence, and its events."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(batch)]
    rows = [
        hashlib.sha1(b"".join(leaf[i].tobytes() for leaf in leaves)).hexdigest()
        for i in range(len(batch.latents))
    ]
    page = {"batch": number, "rows": rows, "events": batch.event_id[batch.event_id >= 0].tolist()}
    with open(folder / f"batches-{jax.process_index()}.jsonl", "a") as file:
        file.write(json.dumps(page) + "\n")


class Fellows:
    """Processes that train one model together, handled as one process is."""

    def __init__(self, processes: Sequence[BaseProcess]):
        self.processes = processes

    def is_alive(self) -> bool:
        """Whether any of them is."""
        return any(process.is_alive() for process in self.processes)

    def join(self, timeout: float | None = None) -> None:
        """Waits for all of them, at most so many seconds."""
        until = None if timeout is None else time.monotonic() + timeout
        for process in self.processes:
            process.join(None if until is None else max(until - time.monotonic(), 0))

    def kill(self) -> None:
        """All of them, stopped ones too."""
        for process in self.processes:
            process.kill()

    def terminate(self) -> None:
        """One of them, which has to tell the others."""
        self.processes[-1].terminate()

    @property
    def exitcode(self) -> int | None:
        """None while any is alive, else 0 or the status of one that failed."""
        statuses = [process.exitcode for process in self.processes]
        return None if None in statuses else next((status for status in statuses if status), 0)


class Toy:
    """Folders and processes of the toy run, under one root."""

    def __init__(self, root: Path):
        """Makes the data; the first start of a process imports everything."""
        self.root, self.count = root, 1
        self._references, self._numbers = {}, itertools.count(1)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["experiments.chaos_toy"])
        config = get_config()
        config.workdir = str(root / "data")
        make_data(config)
        self.steps = config.stages[STAGE].steps
        self.every = config.stages[STAGE].save_every

    def fellows(self, count: int) -> "Toy":
        """The same toy, trained by `count` processes together, with references of its own."""
        other = copy.copy(self)
        other.count, other._references = count, {}
        return other

    def fresh(self, name: str = "run") -> Path:
        """A folder with the data and nothing trained."""
        folder = self.root / f"{name}-{next(self._numbers)}"
        shutil.copytree(self.root / "data", folder)
        return folder

    def start(
        self,
        folder: Path,
        changes: Changes | None = None,
        environment: Mapping[str, str] | None = None,
        nan_at: tuple[int, ...] = (),
    ) -> BaseProcess | Fellows:
        """A process that trains in `folder`, from wherever it was left; several where they are `fellows`."""
        address, started = f"127.0.0.1:{free_port()}", []
        for index in range(self.count):
            among = {"PROCESSES": self.count, "PROCESS_ID": index, "COORDINATOR": address}
            own = {f"WALLWM_{name}": str(value) for name, value in among.items() if self.count > 1}
            arguments = (str(folder), dict(changes or {}), {**(environment or {}), **own}, nan_at)
            started.append(self._context.Process(target=child, args=arguments))
            started[-1].start()
        return started[0] if self.count == 1 else Fellows(started)

    def finish(self, folder: Path, *more: Any) -> int:
        """Trains to the end; the exit status."""
        process = self.start(folder, *more)
        process.join(WAIT_S * self.count)  # they share one core
        return ended(process)

    def reference(self, changes: Changes | None = None) -> Path:
        """The run nobody hurt, for these settings; trained once.

        Raises:
          UserError: even that one fails; the message says where its output is.
        """
        key = json.dumps(dict(changes or {}), sort_keys=True)
        if key not in self._references:
            folder = self.fresh("reference")
            if status := self.finish(folder, changes):
                raise UserError(
                    f"the undisturbed run ended with status {status}; read {folder / 'child.log'}"
                )
            self._references[key] = folder
        return self._references[key]


def checkpoints(folder: Path) -> Path:
    """Where a run's steps lie."""
    return folder / STAGE / "checkpoints"


def losses(folder: Path) -> dict[int, str]:
    """Step -> hexadecimal loss, of every whole line of the log."""
    path = folder / STAGE / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    pages = [json.loads(line) for line in lines if line.endswith("}\n")]
    return {page["step"]: page["loss_hex"] for page in pages}


def batches(folder: Path) -> list[tuple[int, int, tuple[str, ...], tuple[int, ...]]]:
    """Every batch that was read, in order: its number, who read it, its sequences' SHA-1 and events.

    A batch that was read again after a restart is there again.
    """
    found = []
    for path in sorted(folder.glob("batches-*.jsonl")):
        reader = int(path.stem.rpartition("-")[2])
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("}\n"):
                page = json.loads(line)
                found.append((page["batch"], reader, tuple(page["rows"]), tuple(page["events"])))
    return found


def wait_for_step(process: BaseProcess | Fellows, folder: Path, steps: int = 1) -> bool:
    """Waits until a process has logged `steps` that it took itself; False when it ended first."""
    log = folder / STAGE / "metrics.jsonl"

    def seen() -> tuple[int, int]:
        try:
            return log.stat().st_ino, log.read_bytes().count(b"\n")
        except FileNotFoundError:
            return 0, 0

    # A start renames a shortened log over the old one, then adds to it.
    before, deadline = seen()[0], time.monotonic() + WAIT_S
    kept = None
    while process.is_alive() and time.monotonic() < deadline:
        inode, lines = seen()
        if inode != before and kept is None:
            kept = lines
        if kept is not None and lines >= kept + steps:
            return True
        time.sleep(0.003)
    return False


def ended(process: BaseProcess | Fellows) -> int:
    """Exit status of a process; one that hangs is killed and gives -9."""
    if process.is_alive():
        process.kill()
    process.join()
    return int(process.exitcode)


def state_sha(folder: Path) -> str:
    """SHA-256 over every array of the newest whole step and over its data position."""
    where = checkpoints(folder) / str(latest_step(checkpoints(folder)))
    handler = ocp.PyTreeCheckpointHandler()
    shapes = handler.metadata(where / "state").tree
    plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
    state = handler.restore(where / "state", args=ocp.args.PyTreeRestore(restore_args=plain))
    digest = hashlib.sha256((where / "data" / "metadata").read_bytes())
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        digest.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest()
