"""Evaluation of a run folder: writes eval/*.json and *.npz for report and summary."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from wallwm_jax.evaluate.closed_loop import evaluate_task, save_film, summarise
from wallwm_jax.evaluate.offline import Split, action_report, video_report
from wallwm_jax.events.store import EventStore, open_store
from wallwm_jax.files import write_json
from wallwm_jax.input.latents import open_latents
from wallwm_jax.rollout.planner import ScriptPlanner
from wallwm_jax.rollout.policy import EventPolicy


def open_split(dataset: Path, encoded: Path, name: str) -> Split:
    """Events and latents of one split."""
    return Split(events=open_store(dataset, name), latents=open_latents(encoded / name))


def evaluate_offline(
    policy: EventPolicy,
    train: Split,
    held_out: Split,
    out: Path,
    *,
    dream_steps: int,
    examples: int,
    seed: int,
) -> dict[str, Any]:
    """Held-out video and action numbers, and example events for pictures."""
    out.mkdir(parents=True, exist_ok=True)
    keys = jax.random.split(jax.random.key(seed), 2)
    with tqdm(
        total=5 * len(held_out.events), desc="evaluate", unit="event", mininterval=1.0
    ) as bar:
        action, guesses = action_report(policy, train, held_out, keys[0], bar.update)
        video, clips = video_report(policy, held_out, dream_steps, keys[1], bar.update)
    page = {"video": video, "action": action, "events": len(held_out.events)}
    write_json(out / "offline.json", page)
    save_examples(out, held_out, guesses, clips, spaced_examples(held_out.events, examples))
    return page


def spaced_examples(store: EventStore, count: int) -> list[int]:
    """A few events, tasks in turn, the longer events of each."""
    index = store.index
    order = sorted(range(len(index.task)), key=lambda i: -int(index.length[i]))
    by_task = {int(t): [i for i in order if index.task[i] == t] for t in np.unique(index.task)}
    turns = [rows[k] for k in range(count) for rows in by_task.values() if k < len(rows)]
    return turns[:count]


def save_examples(
    out: Path,
    split: Split,
    guesses: dict[str, list[np.ndarray]],
    clips: list[np.ndarray],
    chosen: list[int],
) -> None:
    """Writes examples.npz and examples.json for the report."""
    views = split.latents.manifest.views
    longest = max(clips[i].shape[1] for i in chosen)
    steps = [len(guesses["expert"][i]) for i in chosen]

    def padded(clip: np.ndarray) -> np.ndarray:
        return np.concatenate(
            [clip, np.repeat(clip[:, -1:], longest - clip.shape[1], axis=1)], axis=1
        )

    def trajectories(name: str) -> np.ndarray:
        table = np.zeros((len(chosen), max(steps), 4), np.float32)
        for row, i in enumerate(chosen):
            actions = guesses[name][i]
            table[row, : len(actions)] = np.concatenate(
                [100 * actions[:, :3], actions[:, 9:10]], axis=1
            )
        return table

    real = [np.stack([split.events[i].frames[view] for view in views]) for i in chosen]
    np.savez_compressed(
        out / "examples.npz",
        real=np.stack([padded(clip) for clip in real]),
        imagined=np.stack([padded(clips[i]) for i in chosen]),
        frames=np.array([clips[i].shape[1] for i in chosen]),
        expert=trajectories("expert"),
        predicted=trajectories("model"),
        mean_caption=trajectories("mean_caption"),
        steps=np.array(steps),
    )
    index, store = split.events.index, split.events
    write_json(
        out / "examples.json",
        [
            {
                "task": store.tasks[int(index.task[i])],
                "seed": int(index.seed[i]),
                "caption": store.captions[int(index.caption[i])],
                "label": store.labels[int(index.label[i])],
            }
            for i in chosen
        ],
    )


def evaluate_closed_loop(
    policy: EventPolicy,
    planner: ScriptPlanner,
    tasks: list[str],
    seeds: list[int],
    out: Path,
    open_env: Callable[[str], Any],
    make_score: Callable[[Any], Any],
    seed: int,
) -> dict[str, dict[str, float]]:
    """Runs every task; resumes after the last finished one."""
    out.mkdir(parents=True, exist_ok=True)
    path, pages = out / "closed_loop.json", {}
    if path.is_file():
        pages = json.loads(path.read_text())
    with tqdm(
        total=len(tasks) * len(seeds), desc="closed loop", unit="episode", mininterval=1.0
    ) as bar:
        for number, task in enumerate(tasks):
            done = pages.get(task)
            if done is not None and [e["seed"] for e in done["episodes"]] == seeds:
                bar.update(len(seeds))
                continue
            with open_env(task) as env:
                pages[task], film = evaluate_task(
                    env,
                    make_score,
                    policy,
                    planner,
                    task,
                    seeds,
                    jax.random.fold_in(jax.random.key(seed), number),
                    bar.update,
                )
            save_film(out, task, film)
            write_json(path, pages)
    return summarise({task: pages[task] for task in tasks})
