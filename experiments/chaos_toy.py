"""The run that `experiments.chaos` hurts: its data, its processes, and what they leave.

Children are forked from a server that has imported everything and started nothing
(multiprocessing's "forkserver"), so a restart costs the trace and a look into the
compilation cache, not the imports as well.
"""

import dataclasses
import hashlib
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from configs.chaos import get_config
from experiments.common import EXPECTED, one_line_errors, quiet
from wallwm_jax.episodes.record import TRACKS, Episode, EventSpan
from wallwm_jax.errors import UserError
from wallwm_jax.events.build import events_of
from wallwm_jax.events.store import EventWriter
from wallwm_jax.input.loader import Loader
from wallwm_jax.train import build
from wallwm_jax.train.checkpoint import latest_step
from wallwm_jax.train.encode import encode_dataset
from wallwm_jax.train.loop import train
from wallwm_jax.train.run import build_run

STAGE = "video"
WAIT_S = 600
"""Longest wait for a child's next step or its end."""

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


def child(folder: str, changes: dict, environment: dict, nan_at: tuple[int, ...]) -> None:
    """Trains the toy in this process, as `experiments.train` would; output to FOLDER/child.log.

    Args:
      folder: the run's workdir, with its data.
      changes: to the config.
      environment: set before a device is looked for.
      nan_at: batches that arrive with a NaN.
    """
    log = os.open(Path(folder) / "child.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(environment)
    quiet()
    config = get_config()
    config.workdir, config.stage = folder, STAGE
    config.update_from_flattened_dict(changes)
    if nan_at:
        Loader.__next__ = _spoilt(Loader.__next__, nan_at)
    with one_line_errors(*EXPECTED):
        train(build_run(config))


def _spoilt(give: Callable, nan_at: tuple[int, ...]) -> Callable:
    """The loader's `__next__` with a NaN in some batches."""

    def spoilt(loader: Loader) -> Any:
        number, batch = loader.get_state()["batch"], give(loader)
        if number not in nan_at:
            return batch
        latents = batch.latents.copy()
        latents[0] = np.nan
        return dataclasses.replace(batch, latents=latents)

    return spoilt


class Toy:
    """Folders and processes of the toy run, under one root."""

    def __init__(self, root: Path):
        """Makes the data; the first start of a process imports everything."""
        self.root, self._references, self._count = root, {}, 0
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["experiments.chaos_toy"])
        config = get_config()
        config.workdir = str(root / "data")
        make_data(config)
        self.steps = config.stages[STAGE].steps
        self.every = config.stages[STAGE].save_every

    def fresh(self, name: str = "run") -> Path:
        """A folder with the data and nothing trained."""
        self._count += 1
        folder = self.root / f"{name}-{self._count}"
        shutil.copytree(self.root / "data", folder)
        return folder

    def start(
        self,
        folder: Path,
        changes: Changes | None = None,
        environment: Mapping[str, str] | None = None,
        nan_at: tuple[int, ...] = (),
    ) -> BaseProcess:
        """A process that trains in `folder`, from wherever it was left."""
        arguments = (str(folder), dict(changes or {}), dict(environment or {}), nan_at)
        process = self._context.Process(target=child, args=arguments)
        process.start()
        return process

    def finish(self, folder: Path, *more: Any) -> int:
        """Trains to the end; the exit status."""
        process = self.start(folder, *more)
        process.join(WAIT_S)
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


def wait_for_step(process: BaseProcess, folder: Path, steps: int = 1) -> bool:
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


def ended(process: BaseProcess) -> int:
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
