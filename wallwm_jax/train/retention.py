"""Which steps of a run stay when a newer one is saved."""

import dataclasses
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass
class KeepVerified:
    """Which steps stay: an Orbax preservation policy that trusts only what was read back.

    Attributes:
      keep: the newest known whole steps that stay.
      keep_every: multiples of this many steps stay for ever; 0 is none.
      whole: steps whose files were read back and fitted their seal.
    """

    keep: int
    keep_every: int = 0
    whole: set[int] = dataclasses.field(default_factory=set)

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """One answer per step; Orbax asks while the newest is being written.

        It deletes only after the newest was committed, which reads it back; so
        that one counts as whole. While fewer than `keep` steps do, none goes.
        """
        del context
        steps = [info.step for info in checkpoints]
        known = sorted(step for step in steps if step in self.whole | {max(steps)})
        oldest = known[-self.keep] if len(known) >= self.keep else min(steps)
        return [s >= oldest or (self.keep_every > 0 and s % self.keep_every == 0) for s in steps]
