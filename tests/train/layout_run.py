"""A command: the toy run's stages with the real towers, on whatever devices this process sees.

    python tests/train/layout_run.py FOLDER

FOLDER holds encoded toy data. As one of several processes it joins them first. The
last line it prints is JSON: stage -> batches at which something was compiled late.
"""

import json
import os
import sys
from pathlib import Path

import jax
from toy_run import toy_config

from wallwm_jax.parallel.processes import Processes, join, together
from wallwm_jax.train.loop import Run, train
from wallwm_jax.train.run import build_run

STAGES, STEPS = ("video", "action"), 6

SIZES = {
    "pack.sequences": 8,
    "text.width": 16,
    "text.head_dim": 8,
    "text.ffn": 24,
    "video.layers": 1,
    "video.text_width": 16,
}
"""What has to divide by eight devices does."""


def trained(run: Run) -> list[int]:
    """Trains to the end; numbers of batches after the second step at which something was compiled."""
    compiled: list[int] = []

    def note(event: str, seconds: float, **_: object) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(run.loader.get_state()["batch"])

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        train(run)
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    assert any(batch <= 1 for batch in compiled), "the listener hears nothing"
    # The save after the last step has small programs of its own.
    return [batch for batch in compiled if 2 < batch < run.steps]


def main(folder: Path) -> dict[str, list[int]]:
    """Trains all stages; see above."""
    config = toy_config(folder)
    config.update_from_flattened_dict(SIZES)
    late = {}
    for stage in STAGES:
        config.stage = stage
        config.stages[stage].update(dict(steps=STEPS, save_every=STEPS, log_every=1))
        late[stage] = trained(build_run(config))
    return late


if __name__ == "__main__":
    join(Processes.of({}, dict(os.environ)))
    with together():
        print(json.dumps(main(Path(sys.argv[1]))))
