"""Length-aware caption drop (method section 2).

Long events show what they are; a model that always reads their caption learns
to ignore the picture. The probability of an empty caption rises with the
event's length on a half cosine between two bounds:

    rho(L) = rho_min                                              L <= L_min
    rho(L) = rho_min + (rho_max - rho_min) (1 - cos(pi u)) / 2,   u = (L - L_min) / (L_max - L_min)
    rho(L) = rho_max                                              L >= L_max
"""

import dataclasses
import math

import numpy as np

STREAM = 0xCA
"""Separates this random stream from others drawn with the same seed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionDrop:
    """The drop law. Lengths are raw frames: an event of L_e steps shows L_e + 1.

    Attributes:
      rho_min, rho_max: probabilities at and beyond the two bounds.
      length_min, length_max: the bounds, raw frames.
    """

    rho_min: int | float = 0.1
    rho_max: int | float = 0.9
    length_min: int | float = 129
    length_max: int | float = 220

    def __post_init__(self):
        if not 0 <= self.rho_min <= self.rho_max <= 1:
            raise ValueError(f"caption drop needs 0 <= rho_min <= rho_max <= 1, got {self}")
        if not self.length_min < self.length_max:
            raise ValueError(f"caption drop needs length_min < length_max, got {self}")

    def probability(self, raw_frames: int | float) -> float:
        """rho(L) of the module docstring."""
        u = (raw_frames - self.length_min) / (self.length_max - self.length_min)
        u = min(max(u, 0.0), 1.0)
        return self.rho_min + (self.rho_max - self.rho_min) * (1 - math.cos(math.pi * u)) / 2

    def drops(self, steps: int, seed: int, epoch: int, event: int) -> bool:
        """Whether this event loses its caption in this epoch.

        A pure function of its arguments: neither the number of processes nor
        the event's place in a batch changes the answer.

        Args:
          steps: L_e, control steps.
          seed, epoch, event: what the random number is drawn from.
        """
        draw = np.random.default_rng([STREAM, seed, epoch, event]).random()
        return bool(draw < self.probability(steps + 1))
