"""Events per second and core: our store, LeRobot's own loader, a plain TFRecord read.

    python -m venv lerobot-env && lerobot-env/bin/pip install lerobot==0.4.4
    python -m experiments.benchmark.loading --source=FOLDER --lerobot_python=lerobot-env/bin/python

The same episodes three times: as an event store, as LeRobotDataset v3.0 (AV1, a key
frame every second frame, as its own writer does) and as a TFRecord file of the same
event records. An event is a window of `steps` control steps: its sampled frames of
all views, its actions, its caption. The readers take turns, each alone in a process
on one core, and its processor seconds are counted, so that a shared machine does not
matter; ours and LeRobot's read the same windows in the same random order, the TFRecord
is read from front to back. LeRobot lives in an environment of its own, because its
pins and ours exclude each other; without it that row is left out. LeRobot keeps the
size of the source: only at that --image_size is the same number of pixels read.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from absl import app, flags

from experiments.common import EXPECTED, one_line_errors, quiet
from wallwm_jax.episodes import clock
from wallwm_jax.episodes.source import Source, open_source
from wallwm_jax.episodes.tfrecord import masked_crc
from wallwm_jax.events import imports, prepare, runner
from wallwm_jax.events.export_lerobot import Marked, export_lerobot
from wallwm_jax.events.store import open_store

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "source", None, "folder of a public dataset with pictures and actions", required=True
)
flags.DEFINE_string("lerobot_python", "", "interpreter of an environment with lerobot")
flags.DEFINE_integer("steps", 32, "control steps of an event", lower_bound=2)
flags.DEFINE_integer("image_size", 256, "pixels of our square pictures", lower_bound=8)
flags.DEFINE_integer("repeats", 5, "turns of each reader", lower_bound=1)
flags.DEFINE_string("json", "", "file for the results")


def make_all(source: Source, work: Path, steps: int, image_size: int) -> list[dict]:
    """Writes the three copies; returns the windows, each {"episode", "frame"}."""
    found = imports.survey(source)
    options = prepare.Preparation(
        views=found.views, control_hz=found.control_hz, image_size=image_size,
        segmentation="fixed", chunk_length=steps, max_length=steps, sync=False, clean=False,
    )  # fmt: skip
    recipe = imports.make_recipe(source, options, hash_files=False)
    runner.make_store(work / "store", imports.make_parts(source), recipe, progress=sys.stdout)
    episodes = [prepare.annotated(source.read(key), options) for key in source.keys]
    kept = [made for made in episodes if not made.skipped]
    export_lerobot(
        work / "lerobot",
        (Marked(episode=m.episode, spans=m.spans, captions=[c["action"] for c in m.captions]) for m in kept),
    )  # fmt: skip
    numbers = {made.episode.episode_id: i for i, made in enumerate(kept)}
    store = open_store(work / "store", "train")
    windows = []
    with open(work / "events.tfrecord", "wb") as file:
        for i in np.flatnonzero(store.index.length == steps):
            file.write(framed(store.stored_bytes(int(i))))
            episode = store.episodes[int(store.index.episode[i])]
            windows.append(
                {"event": int(i), "episode": numbers[episode], "frame": int(store.index.start[i])}
            )
    np.random.default_rng(0).shuffle(windows)
    (work / "windows.json").write_text(json.dumps(windows))
    return windows


def framed(data: bytes) -> bytes:
    """A TFRecord frame around a record."""
    length = len(data).to_bytes(8, "little")
    return length + crc(length) + data + crc(data)


def crc(data: bytes) -> bytes:
    """The checksum of a frame's part, as it is written."""
    return masked_crc(data).to_bytes(4, "little")


def seconds_of(python: str, reader: str, work: Path, options: list[str]) -> float:
    """Processor seconds that one reader takes for all windows, alone on one core."""
    core = sorted(os.sched_getaffinity(0))[0]
    script = Path(__file__).with_name("loading_readers.py")
    command = ["taskset", "-c", str(core), python, str(script), reader, str(work), *options]
    done = subprocess.run(command, capture_output=True, text=True, env=_environment())
    if done.returncode:
        raise OSError(f"reader {reader} failed: {done.stderr.strip().splitlines()[-1]}")
    return float(done.stdout.strip().splitlines()[-1])


def _environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[2])
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    return os.environ | threads | offline | {"PYTHONPATH": root, "JAX_PLATFORMS": "cpu"}


def main(_: list[str]) -> None:
    """Prints one table of events per second and ratios."""
    quiet()
    with one_line_errors(*EXPECTED), tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        source = open_source(FLAGS.source)
        windows = make_all(source, work, FLAGS.steps, FLAGS.image_size)
        readers = {"ours": sys.executable, "tfrecord": sys.executable}
        if FLAGS.lerobot_python:
            readers["lerobot"] = FLAGS.lerobot_python
        frames = 1 + FLAGS.steps // clock.STRIDE
        options = [str(FLAGS.steps), str(clock.STRIDE)]
        times: dict[str, list[float]] = {name: [] for name in readers}
        for _turn in range(FLAGS.repeats):
            for name, python in readers.items():
                times[name].append(seconds_of(python, name, work, options))
        rate = {name: len(windows) / statistics.median(t) for name, t in times.items()}
        print(f"{len(windows)} events of {frames} pictures and {FLAGS.steps} steps, one core")
        for name, value in rate.items():
            print(f"{name:10s} {value:8.1f} events/s   ours is {rate['ours'] / value:5.2f} x")
        if FLAGS.json:
            Path(FLAGS.json).write_text(json.dumps({"events_per_second": rate, "seconds": times}))


if __name__ == "__main__":
    app.run(main)
