"""Meta-World's own environment, with our scene in it and a state that can be restored.

Meta-World keeps the state of an episode in three places: MuJoCo's physics, a few
arrays of the model that a reset edits, and attributes of the environment. All
three are saved and restored together, so that one environment (and one renderer)
serves every seed and still gives, bit for bit, what a fresh one would.
"""

import copy
from typing import Any

import numpy as np
from jaxtyping import Float64

from wallwm_jax.sim.scene import compile_scene, mujoco

_MODEL_FIELDS = ("body_pos", "body_quat", "site_pos")  # what resets of Meta-World edit
_ALL = mujoco.mjtState.mjSTATE_INTEGRATION  # everything the next physics step depends on


def build(task: str, *, image_size: int, thin_meshes: bool) -> Any:
    """Meta-World's environment for a task, compiled from our version of its scene.

    Goals are part of the expert's observation, and episodes have no time limit:
    the caller decides when to stop.
    """
    from metaworld import env_dict  # late: takes a second and loads all fifty tasks

    def compile_ours(self: Any) -> tuple[Any, Any]:
        model = compile_scene(self.fullpath, image_size=image_size, thin_meshes=thin_meshes)
        return model, mujoco.MjData(model)

    base = env_dict.ALL_V3_ENVIRONMENTS[f"{task}-v3"]
    sim = type("Scene", (base,), {"_initialize_simulation": compile_ours})()
    del sim.sawyer_observation_space  # was cached for a hidden goal
    sim._partially_observable = False
    sim._set_task_called = True
    sim.seeded_rand_vec = True  # the environment's own generator, not numpy's global one
    sim.max_path_length = np.iinfo(np.int64).max
    return sim


def reset(sim: Any, seed: int) -> Float64[np.ndarray, "39"]:
    """Draws the start state of `seed`; returns the expert's observation of it."""
    mujoco.mj_resetData(sim.model, sim.data)
    sim.seed(seed)
    # A reset places the hand before it moves the task's bodies, and reads poses from
    # before that move. So it is done once to draw the layout and once more in it.
    sim._freeze_rand_vec = False
    sim.reset()
    sim._freeze_rand_vec = True
    sim.reset()
    mujoco.mj_forward(sim.model, sim.data)
    sim._prev_obs = sim._get_curr_obs_combined_no_goal()
    return sim._get_obs()


def snapshot(sim: Any) -> dict[str, Any]:
    """A copy of the physics, of the edited model arrays and of the attributes."""
    numbers = np.empty(mujoco.mj_stateSize(sim.model, _ALL))
    mujoco.mj_getState(sim.model, sim.data, numbers, _ALL)
    return {
        "physics": numbers,
        "model": {name: getattr(sim.model, name).copy() for name in _MODEL_FIELDS},
        "variables": copy.deepcopy(_variables(sim)),
    }


def restore(sim: Any, state: dict[str, Any]) -> None:
    """Returns to a `snapshot` of this environment."""
    for name, values in state["model"].items():
        getattr(sim.model, name)[:] = values
    vars(sim).update(copy.deepcopy(state["variables"]))
    mujoco.mj_setState(sim.model, sim.data, state["physics"], _ALL)
    # Contacts and poses are derived, not saved. Deriving them also overwrites the
    # solver's warm start, which is saved: hence the second time.
    mujoco.mj_forward(sim.model, sim.data)
    mujoco.mj_setState(sim.model, sim.data, state["physics"], _ALL)


def _variables(sim: Any) -> dict[str, Any]:
    """Meta-World's own mutable attributes: plain values, arrays and the generator."""
    plain = (np.ndarray, np.random.Generator, float, int, bool, dict, list, tuple, type(None))
    return {name: value for name, value in vars(sim).items() if isinstance(value, plain)}
