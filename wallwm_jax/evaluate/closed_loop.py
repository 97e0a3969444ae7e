"""Closed loop over tasks: the model against a random policy, same budget.

The budget is a task's script twice over: an expert needs about half of it.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from wallwm_jax.rollout.event_mode import Rollout, run_events, run_random
from wallwm_jax.rollout.planner import ScriptPlanner
from wallwm_jax.rollout.policy import EventPolicy

BUDGET = 2.0
"""Control steps allowed, as a multiple of the script's length."""


def evaluate_task(
    env: Any,
    make_score: Callable[[Any], Any],
    policy: EventPolicy,
    planner: ScriptPlanner,
    task: str,
    seeds: list[int],
    key: jax.Array,
    progress: Callable[[int], Any] = lambda n: None,
) -> tuple[dict[str, Any], Rollout]:
    """All seeds of one task.

    Args:
      env: an open environment of the task (see `sim.metaworld`).
      make_score: env (just reset) -> a scorer with `.update(result)`.
      seeds: held-out start states.

    Returns:
      (numbers with one entry per episode, the rollout that was filmed: the
      first success, or else the first episode).
    """
    script = planner.scripts[task]
    budget = round(BUDGET * sum(event.steps for event in script))
    episodes, films = [], []
    for seed in seeds:
        env.reset(seed)
        rollout = run_events(
            env,
            policy,
            planner.events(task),
            make_score(env).update,
            max_steps=budget,
            key=jax.random.fold_in(key, seed),
            film=policy.views[0],
        )
        films.append(rollout)
        env.reset(seed)
        random = run_random(env, make_score(env).update, max_steps=budget, seed=seed)
        episodes.append(
            {
                "seed": seed,
                "success": bool(rollout.success),
                "progress": float(rollout.progress),
                "random_progress": float(random),
                "steps": rollout.steps,
                "budget": budget,
                "events": [dataclasses.asdict(event) for event in rollout.events],
            }
        )
        progress(1)
    best = next((film for film in films if film.success), films[0])
    return {"episodes": episodes}, best


def save_film(folder: Path, task: str, rollout: Rollout) -> None:
    """Writes the filmed rollout for the report."""
    np.savez_compressed(
        folder / f"closed_loop_{task}.npz",
        frames=rollout.frames,
        event=np.array(rollout.frame_event, np.int64),
        step=np.array(rollout.frame_step, np.int64),
    )


def summarise(tasks: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Per task: episodes, successes, mean Task Progress of model and random policy."""
    return {
        task: {
            "episodes": len(page["episodes"]),
            "success": sum(e["success"] for e in page["episodes"]),
            "task_progress": float(np.mean([e["progress"] for e in page["episodes"]])),
            "random_task_progress": float(
                np.mean([e["random_progress"] for e in page["episodes"]])
            ),
        }
        for task, page in tasks.items()
    }
