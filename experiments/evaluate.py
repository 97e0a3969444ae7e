"""Evaluates a trained run: python -m experiments.evaluate --config=configs/metaworld.py.

Writes <workdir>/eval/: held-out video and action numbers, closed-loop records,
pictures. Finished parts are reused when the command is run again.
"""

import json
import shutil
from pathlib import Path

from ml_collections import ConfigDict

from experiments.common import run
from wallwm_jax.evaluate import run as evaluation
from wallwm_jax.files import write_json
from wallwm_jax.rollout.inference import InferenceConfig
from wallwm_jax.rollout.load import load_policy
from wallwm_jax.rollout.planner import ScriptPlanner
from wallwm_jax.rollout.policy import EventPolicy
from wallwm_jax.train import build
from wallwm_jax.train.saved import latest_step


def inference_config(config: ConfigDict) -> InferenceConfig:
    """Inference follows training wherever both name the same constant."""
    shared = ("shift", "action_shift", "s_star", "s_star_steps", "action_target")
    return InferenceConfig(
        video_steps=config.rollout.video_steps,
        action_steps=config.rollout.action_steps,
        **{name: config.objective[name] for name in shared},
    )


def policy_of(config: ConfigDict, sequences: int) -> EventPolicy:
    """The run's trained policy."""
    return load_policy(
        build.checkpoint_folder(config, "action"),
        inference_config(config),
        sequences=sequences,
        pretrained=config.pretrained.to_dict(),
    )


def eval_folder(config: ConfigDict) -> Path:
    """<workdir>/eval, emptied when it holds the results of something else.

    Results belong to one checkpoint and one set of settings; both are written
    beside them, so that training on or changing a step count starts afresh.
    """
    out, run = Path(config.workdir) / "eval", build.checkpoint_folder(config, "action")
    made_from = {
        "checkpoint": latest_step(run),
        "seed": config.seed,
        "rollout": config.rollout.to_dict(),
        "evaluate": config.evaluate.to_dict(),
    }
    page = out / "made_from.json"
    if not page.is_file() or json.loads(page.read_text()) != made_from:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        write_json(page, made_from)
    return out


def offline(config: ConfigDict) -> dict:
    """Held-out numbers, computed once per checkpoint."""
    out = eval_folder(config)
    if (out / "offline.json").is_file():
        return json.loads((out / "offline.json").read_text())
    dataset, encoded = (
        build.dataset_folder(config, "behaviour"),
        build.encoded_folder(config, "behaviour"),
    )
    train, held_out = (
        evaluation.open_split(dataset, encoded, name) for name in ("train", config.evaluate.split)
    )
    return evaluation.evaluate_offline(
        policy_of(config, config.evaluate.sequences),
        train,
        held_out,
        out,
        dream_steps=config.evaluate.dream_steps,
        examples=config.evaluate.examples,
        seed=config.seed,
    )


def closed_loop(config: ConfigDict) -> dict:
    """Closed-loop numbers per task."""
    from wallwm_jax.sim import gl

    gl.require_gl()
    from wallwm_jax.sim.metaworld import MetaWorldEnv
    from wallwm_jax.sim.progress import TaskProgress

    policy = policy_of(config, 1)
    dataset = build.dataset_folder(config, "behaviour")
    planner = ScriptPlanner.from_store(evaluation.open_store(dataset, "train"))
    first = {"test": 200, "validation": 100}[config.evaluate.split]
    return evaluation.evaluate_closed_loop(
        policy,
        planner,
        list(config.data.tasks),
        list(range(first, first + config.evaluate.closed_loop_episodes)),
        eval_folder(config),
        lambda task: MetaWorldEnv(task, image_size=config.data.image_size, views=policy.views),
        TaskProgress,
        config.seed,
    )


def main(config: ConfigDict) -> None:
    """Offline, then closed loop; prints both."""
    page = offline(config)
    print(json.dumps({k: page[k] for k in ("video", "action")}, indent=1))
    for task, numbers in closed_loop(config).items():
        print(f"{task:24s} {numbers}")


if __name__ == "__main__":
    run(main)
