"""How often an offset between actions and pictures is found, and how often a wrong one is.

    python -m experiments.benchmark.sync_recovery [--real=../shared/data] [--first_seed=300]

Shifts the actions of every episode by -5..+5 steps and synchronises it again, by
a natural lag learnt from all OTHER episodes of the set. "held" keeps the length,
as a recorder would that reads its commands late (the first or last command
repeats); "cut" drops the ends. "clock" shifts the state along with the actions,
which only the pictures can tell. "halves" are the halves of the clips. Columns:

    n          episodes with enough motion
    still      those without: one step of their commands is worth less than
               `sync_lags.MOTION_NATS` to the learnt model. Counted apart, here alone
    undone     the offset was taken back exactly
    kept out   quarantined
    missed     nothing was shifted though something was off
    wrong      another shift was made

Another episode's actions (or actions and state) should all be quarantined. Where
they are the same expert's in nearly the same scene, they are as good as its own
("alike": less than `ALIKE` of the commanded path's size apart at the best lag).

Thresholds were set on seeds 0..9, 200..202 and 500..505 and on the real clips, so
only the simulator's rows from other seeds are held out.
"""

import collections
import dataclasses
import warnings
from pathlib import Path

import numpy as np
from absl import app, flags

from configs.metaworld import get_config
from experiments.common import quiet
from wallwm_jax.episodes.record import Episode
from wallwm_jax.episodes.source import open_source
from wallwm_jax.events import retake, sync, sync_lags, sync_limbs, sync_model, sync_motion

FLAGS = flags.FLAGS
flags.DEFINE_list("tasks", [], "Meta-World tasks; empty: those of configs/metaworld.py")
flags.DEFINE_integer("first_seed", 300, "0..9, 200..202 and 500..505 were used in development")
flags.DEFINE_integer(
    "episodes", 6, "seeds of each task; odd ones have a noisy expert", lower_bound=0
)
flags.DEFINE_string("real", "", "folder of the real data; empty leaves it out")

OFFSETS = range(-5, 6)
REAL = ("g1_bottle_lerobot_v21", "gr1_sim_lerobot_v20")
ROW = "{:24s} {:7s} {:>5s} {:>5s} | {:>7s} {:>8s} {:>7s} {:>6s}"
ALIKE = 0.1

Watched = tuple[Episode, dict[str, sync_motion.PictureMotion]]


def simulated(tasks: list[str], seeds: range) -> list[Episode]:
    """Expert episodes; failures are left out."""
    # Binds a GL library when it is imported.
    from wallwm_jax.sim.metaworld import MetaWorldEnv
    from wallwm_jax.sim.record import record_episode

    warnings.filterwarnings("ignore", module="metaworld")
    found = []
    for task in tasks:
        with MetaWorldEnv(task, image_size=64) as env:
            for seed in seeds:
                found.append(record_episode(env, seed, noise=0.2 * (seed % 2), max_steps=120))
    return [episode for episode in found if episode is not None]


def watched(episodes: list[Episode]) -> list[Watched]:
    """The episodes with what moves in their pictures, read once."""
    motion = sync_motion.picture_motion
    return [(e, {v: motion(film) for v, film in e.frames.items()}) for e in episodes]


def part(item: Watched, first: int, last: int) -> Watched:
    """Observations [first, last] of a watched episode."""
    episode, motion = item
    cut = {v: m.part(first, last) for v, m in motion.items()}
    return retake.retake(episode, np.arange(first, last + 1)), cut


def cut(item: Watched, offset: int, clock: bool) -> Watched:
    """Actions (and the state) later by `offset` steps, ends dropped."""
    first = max(0, offset)
    moved = sync.shift(item[0], offset, offset if clock else 0)
    return moved, part(item, first, first + moved.steps)[1]


def held(item: Watched, offset: int, clock: bool) -> Watched:
    """The same, length kept: what comes from outside repeats the first or last."""
    episode, motion = item
    rows = np.clip(np.arange(episode.steps + 1) - offset, 0, episode.steps)
    steps = np.clip(np.arange(episode.steps) - offset, 0, episode.steps - 1)
    native = episode.native
    moved = dataclasses.replace(
        episode,
        target_position=episode.target_position[rows],
        target_rotation=episode.target_rotation[rows],
        gripper_command=episode.gripper_command[steps],
        native=native and dataclasses.replace(native, values=native.values[steps]),
        state=episode.state[rows] if clock else episode.state,
    )
    return moved, motion


def naturals(items: list[Watched]) -> list[sync.Natural | None]:
    """For each episode, what all others say its natural lag is."""
    found = [sync.measure(e, motion=m) for e, m in items]
    return [_natural(found[:i] + found[i + 1 :], one.task) for i, one in enumerate(found)]


def _natural(others: list[sync.SyncResult], task: str) -> sync.Natural | None:
    """As `natural_by_task`, of one task alone."""
    own = sync.natural_lags([r for r in others if r.task == task])
    if own is not None and own.episodes >= sync_lags.ENOUGH:
        return own
    return sync.natural_lags(others)


def moves(item: Watched, natural: sync.Natural | None) -> bool:
    """Whether the episode has enough motion for its commands to tell a step."""
    if natural is None or natural.follower is None:
        return True
    traces = sync.measure(item[0], motion={}).traces
    fit = traces and sync_model.judge(natural.follower, traces, sync_lags.PRIOR_NATS)
    return bool(fit) and fit.motion >= sync_lags.MOTION_NATS


def recovery(
    items: list[Watched], natural: list[sync.Natural | None], inject, clock: bool
) -> collections.Counter:
    """Counts over all episodes and offsets; see the module's text."""
    count = collections.Counter()
    for item, usual in zip(items, natural, strict=True):
        for offset in OFFSETS:
            episode, motion = inject(item, offset, clock)
            result = sync.measure(episode, motion=motion, natural=usual)
            _, made = sync.synchronise(episode, usual, result=result)
            shift = made.numbers.get("shift", 0)
            right = "undone" if shift == -offset else "wrong" if shift else "missed"
            count[right if made.passes else "kept out"] += 1
    return count


def show(name: str, items: list[Watched], natural: list[sync.Natural | None]) -> None:
    """Prints the rows of one set."""
    moving = [i for i, item in enumerate(items) if moves(item, natural[i])]
    known, usual = [items[i] for i in moving], [natural[i] for i in moving]
    still = str(len(items) - len(moving))
    for how, inject, clock in (("held", held, False), ("cut", cut, False), ("clock", held, True)):
        count = recovery(known, usual, inject, clock)
        shares = [
            f"{count[key] / max(1, count.total()):.1%}"
            for key in ("undone", "kept out", "missed", "wrong")
        ]
        print(ROW.format(name, how, str(len(known)), still, *shares), flush=True)


def shuffled(
    name: str, items: list[Watched], natural: list[sync.Natural | None], clock: bool
) -> None:
    """Prints how many episodes pass with another one's actions (and state)."""
    passed, same = 0, 0
    for i in range(len(items)):
        (one, motion), (other, _) = items[i], items[i - 1 - len(items) // 3]
        last = min(one.steps, other.steps)
        (one, motion), (other, _) = part((one, motion), 0, last), part((other, {}), 0, last)
        names = ["target_position", "target_rotation", "gripper_command", "native"]
        names += ["state"] if clock else []
        mixed = dataclasses.replace(one, **{field: getattr(other, field) for field in names})
        result = sync.measure(mixed, motion=motion, natural=natural[i])
        _, made = sync.synchronise(mixed, natural[i], result=result)
        passed += made.passes
        same += made.passes and alike(one, other)
    what = "actions and state" if clock else "actions"
    print(f"{name}: {passed} of {len(items)} episodes with another one's {what} pass, {same} alike")


def alike(one: Episode, other: Episode) -> bool:
    """Whether two episodes of one length command nearly the same path, a few steps apart or not."""
    a, b = ([c for limb in sync_limbs.limbs(e) for c in limb.command.T] for e in (one, other))
    if len(a) != len(b):
        return False
    a, b = np.stack(a, 1), np.stack(b, 1)
    size = np.linalg.norm(a - a.mean(0))
    apart = [np.linalg.norm((a - np.roll(b, k, 0))[5:-5]) for k in OFFSETS]
    return bool(min(apart) < ALIKE * size)


def main(_: list[str]) -> None:
    """Records, injects, prints."""
    quiet()
    seeds = range(FLAGS.first_seed, FLAGS.first_seed + FLAGS.episodes)
    sets = {}
    if seeds:
        names = FLAGS.tasks or list(get_config().data.tasks)
        sets[f"Meta-World {seeds[0]}..{seeds[-1]}"] = watched(simulated(names, seeds))
    for name in REAL if FLAGS.real else ():
        folder = Path(FLAGS.real) / name
        source = open_source(
            next((p.parent.parent for p in folder.rglob("meta/info.json")), folder)
        )
        clips = watched([source.read(key) for key in source.keys])
        edges = [(0, e.steps // 2) for e, _ in clips] + [(e.steps // 2, e.steps) for e, _ in clips]
        halves = [part(c, *edge) for c, edge in zip(clips * 2, edges, strict=True)]
        sets |= {name: clips, f"{name[:15]}, halves": halves}
    print(ROW.format("", "offset", "n", "still", "undone", "kept out", "missed", "wrong"))
    for name, items in sets.items():
        natural = naturals(items)
        show(name, items, natural)
        if "halves" not in name:
            shuffled(name, items, natural, False)
            shuffled(name, items, natural, True)


if __name__ == "__main__":
    app.run(main)
