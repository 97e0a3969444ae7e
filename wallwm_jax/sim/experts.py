"""Meta-World's scripted experts, slowed down, and the noise that widens their data.

At full speed an expert crosses the table in a quarter of a second; clipping its
translation stretches events to lengths a model can follow. Noise that is
constant over a few steps moves the hand off the expert's path, and the expert's
answer shows how to come back (the idea of DART, Laskey et al. 2017).
"""

import warnings
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float64

from wallwm_jax.sim.metaworld import METRES_PER_UNIT, MetaWorldEnv

TRANSLATION_CLIP = 0.7
NOISE_STEPS = 6  # control steps that share one draw: 0.15 s at 40 Hz
_NOISE_STREAM = 999


class Expert:
    """Gives the command of each control step from the privileged state."""

    def __init__(
        self,
        task: str,
        *,
        translation_clip: float = TRANSLATION_CLIP,
        noise: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Makes the expert of one episode.

        Args:
          task: a name in `tasks.TASKS`.
          translation_clip: largest move per axis, in Meta-World's unit (1 cm per
            simulator step); 1 is the original speed.
          noise: standard deviation of the piecewise constant offset, same unit.
          seed: of the noise.
        """
        from metaworld import policies  # late: loads all fifty

        self._policy = policies.ENV_POLICY_MAP[f"{task}-v3"]()
        self._clip = translation_clip
        self._offsets = _piecewise_noise(noise, seed)

    def act(self, env: MetaWorldEnv) -> tuple[Float64[np.ndarray, "3"], float]:
        """Returns (desired position in metres, gripper) for `MetaWorldEnv.step`."""
        with warnings.catch_warnings():
            # The experts warn that their raw actions leave [-1, 1]; clipping is meant.
            warnings.simplefilter("ignore")
            action = self._policy.get_action(env.expert_observation)
        action = np.clip(action, -1.0, 1.0)
        move = np.clip(action[:3], -self._clip, self._clip) + next(self._offsets)
        reach = env.control_repeat * METRES_PER_UNIT
        return env.target_position + reach * np.clip(move, -1.0, 1.0), float(action[3])


def _piecewise_noise(scale: float, seed: int) -> Iterator[Float64[np.ndarray, "3"]]:
    """Endless Gaussian offsets that change every NOISE_STEPS."""
    rng = np.random.default_rng([seed, _NOISE_STREAM])
    while True:
        offset = rng.normal(0.0, scale, 3) if scale else np.zeros(3)
        for _ in range(NOISE_STEPS):
            yield offset
