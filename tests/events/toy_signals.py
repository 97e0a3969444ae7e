"""Episodes of which nothing is known but the signals that a test gives."""

import numpy as np
import pyarrow.parquet as parquet

from wallwm_jax.episodes.record import Episode, NativeActions


def make_episode(steps, hz=40.0, **fields):
    """An episode of which nothing is known but what `fields` say."""
    arms = fields.get("gripper_command", np.zeros((steps, 0))).shape[1]
    blank = dict(
        episode_id="made", task="", seed=0, embodiment="robot", instruction="", control_hz=hz,
        success=None, frames={}, cameras={}, state=np.zeros((steps + 1, 0), np.float32),
        target_position=np.zeros((steps + 1, arms, 3), np.float32),
        target_rotation=np.zeros((steps + 1, arms, 3, 3), np.float32),
        gripper_command=np.zeros((steps, 0), np.float32), action_mask=np.zeros(20, bool),
        signals={}, nouns={},
    )  # fmt: skip
    return Episode(**blank | fields)


def joint_episode(path, names, hz):
    """A LeRobot table as an episode of joints: N rows are N observations, N - 1 steps."""
    table = parquet.read_table(path, columns=["action", "observation.state"])
    action, state = (np.array(table[c].to_pylist(), np.float32) for c in table.column_names)
    native = NativeActions(values=action[:-1], names=tuple(names))
    return make_episode(len(action) - 1, hz, state=state, native=native, episode_id=path.stem)
