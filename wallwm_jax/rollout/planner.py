"""The scripted planner: names the next event and its duration.

It stands where a person, an agent or the vision-language model will stand: it
says WHAT comes next and for how long, never HOW. The script of a task is what
its training episodes did most often, with the median duration of each event.
"""

import collections
import dataclasses
from collections.abc import Iterator

import numpy as np

from wallwm_jax.events.store import EventStore

RESTART = ("align", "approach", "reach")
"""Where a script starts again when the task is not done: at the last of these."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedEvent:
    """One event to execute.

    Attributes:
      caption: action-track caption c_e.
      label: behaviour, for records.
      steps: duration in control steps.
    """

    caption: str
    label: str
    steps: int


@dataclasses.dataclass(frozen=True)
class ScriptPlanner:
    """task -> events, in order."""

    scripts: dict[str, tuple[PlannedEvent, ...]]

    @classmethod
    def from_store(cls, store: EventStore) -> "ScriptPlanner":
        """Reads the scripts off a training split."""
        return cls({task: _script(store, number) for number, task in enumerate(store.tasks)})

    def events(self, task: str) -> Iterator[PlannedEvent]:
        """Events to execute one after another, without end.

        After the script's last event the manipulation is tried again.

        Raises:
          ValueError: no script for this task.
        """
        if task not in self.scripts:
            raise ValueError(
                f"no script for task {task!r}; the planner knows {sorted(self.scripts)}"
            )
        script = self.scripts[task]
        yield from script
        again = max((i for i, event in enumerate(script) if event.label in RESTART), default=0)
        while True:
            yield from script[again:]


def _script(store: EventStore, task: int) -> tuple[PlannedEvent, ...]:
    """The most frequent sequence of captions of a task, durations their medians."""
    index = store.index
    episodes = [
        np.flatnonzero((index.task == task) & (index.episode == e))
        for e in np.unique(index.episode[index.task == task])
    ]
    episodes = [rows[np.argsort(index.event[rows])] for rows in episodes]
    sequences = [tuple(int(c) for c in index.caption[rows]) for rows in episodes]
    # Ties go to the shorter, then to the smaller ids: the same data, the same script.
    counts = collections.Counter(sequences)
    chosen = min(counts, key=lambda s: (-counts[s], len(s), s)) if counts else ()
    same = [rows for rows, sequence in zip(episodes, sequences, strict=True) if sequence == chosen]
    return tuple(
        PlannedEvent(
            caption=store.captions[caption],
            label=store.labels[int(index.label[same[0][place]])],
            steps=int(np.median([index.length[rows[place]] for rows in same])),
        )
        for place, caption in enumerate(chosen)
    )
