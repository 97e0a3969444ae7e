"""The main job end to end: python -m experiments.demo --out runs/demo [--profile smoke].

Data, two stages of training, evaluation, report. Every phase can be killed at
any instant; the same command continues, and reuses what is complete.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs.metaworld import get_config
from experiments import evaluate, prepare_data
from experiments.common import EXPECTED, make_folder, one_line_errors, quiet
from wallwm_jax.evaluate import data_report
from wallwm_jax.evaluate.report import write_report
from wallwm_jax.evaluate.run import open_split
from wallwm_jax.evaluate.summary import summarise_run
from wallwm_jax.files import write_json
from wallwm_jax.train import build
from wallwm_jax.train.loop import train
from wallwm_jax.train.run import build_run

SMOKE = {
    "data.tasks": ("button-press-topdown", "drawer-open"),
    "data.train_episodes": 4,
    "data.validation_episodes": 1,
    "data.test_episodes": 2,
    "stages.video.steps": 20,
    "stages.video.warmup": 4,
    "stages.video.save_every": 10,
    "stages.action.steps": 10,
    "stages.action.warmup": 2,
    "stages.action.save_every": 10,
    "evaluate.closed_loop_episodes": 1,
    "evaluate.examples": 2,
}
"""Overrides of the smoke profile: the same code, far too little training."""

PLAN = {"data": 150, "video": 420, "action": 240, "evaluate": 60, "closed_loop": 120, "report": 20}
"""Seconds per phase on two quiet cores, for the estimate of time left."""


class Phases:
    """Runs phases in order, remembers their seconds, says how long is left."""

    def __init__(self, path: Path, scale: float):
        self._path, self._scale = path, scale
        self.seconds = json.loads(path.read_text()) if path.is_file() else {}
        self._left = dict(PLAN)

    def __call__(self, name: str, work: Callable[[], Any]) -> Any:
        """Runs one phase; time of earlier, interrupted calls is kept."""
        # What a phase has spent in an interrupted call need not be spent again.
        spent = {n: self.seconds.get(n, 0.0) for n in self._left}
        left = sum(max(0.0, self._scale * self._left[n] - spent[n]) for n in self._left)
        print(f"== {name} (about {left / 60:.1f} min left in all)", flush=True)
        before, started = self.seconds.get(name, 0.0), time.monotonic()
        try:
            return work()
        finally:
            self._left.pop(name, None)
            self.seconds[name] = round(before + time.monotonic() - started, 1)
            write_json(self._path, self.seconds)


def make_config(out: Path, profile: str) -> ConfigDict:
    """The demo's configuration."""
    config = get_config()
    config.workdir = str(out)
    if profile == "smoke":
        config.update_from_flattened_dict(SMOKE)
    return config


def train_stage(config: ConfigDict, stage: str) -> dict[str, Any]:
    """Trains one stage to its end."""
    config.stage = stage
    return train(build_run(config))


def write_data_pages(config: ConfigDict) -> dict[str, Any]:
    """eval/timelines.json and eval/packing.json; returns the packing numbers."""
    out = Path(config.workdir) / "eval"
    out.mkdir(parents=True, exist_ok=True)
    folders = build.dataset_folder(config, "behaviour"), build.encoded_folder(config, "behaviour")
    held_out, training = open_split(*folders, config.evaluate.split), open_split(*folders, "train")
    write_json(out / "timelines.json", data_report.timelines(held_out.events))
    dims = build.build_dims(config, training.latents)
    packing = data_report.packing(training.latents, dims, config.pack.window, config.seed)
    write_json(out / "packing.json", packing)
    return packing


def run_demo(out: Path, profile: str) -> Path:
    """Everything; returns the report's path.

    Raises:
      ValueError, OSError and the rooms' own errors, one line each.
    """
    make_folder(out, "--out")
    config = make_config(out, profile)
    phase = Phases(out / "seconds.json", 1.0 if profile == "full" else 0.12)
    phase("data", lambda: prepare_data.main(config))
    phase("video", lambda: train_stage(config, "video"))
    trained = phase("action", lambda: train_stage(config, "action"))
    offline = phase("evaluate", lambda: evaluate.offline(config))
    closed_loop = phase("closed_loop", lambda: evaluate.closed_loop(config))

    def report() -> Path:
        packing = write_data_pages(config)
        summary = summarise_run(
            out, offline, closed_loop, packing, phase.seconds, trained["params"]
        )
        write_json(out / "summary.json", summary)
        return write_report(out)

    return phase("report", report)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--profile", choices=("full", "smoke"), default="full")
    options = parser.parse_args()
    quiet()
    with one_line_errors(*EXPECTED):
        path = run_demo(options.out, options.profile)
        print(f"report: {path}\nsummary: {options.out / 'summary.json'}")


if __name__ == "__main__":
    main()
