"""What the data looks like: event timelines and packing, for the report."""

from typing import Any

import numpy as np

from wallwm_jax.events.store import EventStore
from wallwm_jax.input.batch import BatchDims
from wallwm_jax.input.latents import LatentStore
from wallwm_jax.input.packing import epoch_plan, packing_report

TRACKS = ("task", "subtask", "action", "segment")


def timelines(store: EventStore, per_task: int = 1) -> list[dict[str, Any]]:
    """Caption tracks, hand speed and gripper of the first episodes of each task.

    Speed is that of the commanded pose, centimetres per control step.
    """
    index, pages = store.index, []
    for task in np.unique(index.task):
        for episode in np.unique(index.episode[index.task == task])[:per_task]:
            rows = np.flatnonzero((index.task == task) & (index.episode == episode))
            events = [store[int(i)] for i in rows[np.argsort(index.event[rows])]]
            motion = [np.diff(e.actions[:, :3], axis=0, prepend=np.zeros((1, 3))) for e in events]
            pages.append(
                {
                    "task": store.tasks[int(task)],
                    "seed": events[0].seed,
                    "steps": events[-1].end,
                    "tracks": {name: _bars(events, name) for name in TRACKS},
                    "speed": [
                        round(float(v), 4) for m in motion for v in 100 * np.linalg.norm(m, axis=1)
                    ],
                    "gripper": [round(float(v), 3) for e in events for v in e.actions[:, 9]],
                }
            )
    return pages


def _bars(events: list, track: str) -> list[list]:
    """[[start, end, text], ...]: neighbours with one text are one bar."""
    bars: list[list] = []
    for event in events:
        text = event.captions[track]
        if bars and bars[-1][2] == text and track != "segment":
            bars[-1][1] = event.end
        else:
            bars.append([event.start, event.end, text])
    return bars


def packing(latents: LatentStore, dims: BatchDims, window: int, seed: int) -> dict[str, Any]:
    """How full the sequences of the first epoch are.

    Returns:
      What `packing_report` says, and "efficiency": the smaller of its
      two fractions.
    """
    sizes = np.stack([latents.frames, latents.steps, np.ones_like(latents.steps)], axis=1)
    plan = epoch_plan(sizes, (dims.frames, dims.actions, dims.events), seed, 0, window)
    report = packing_report(latents.frames, latents.steps, plan, dims.frames, dims.actions)
    # Both towers' sequences count alike, so that neither hides the other's padding.
    return report | {"efficiency": min(report["video_tokens_real"], report["action_tokens_real"])}
