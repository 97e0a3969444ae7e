"""Events of an episode that nobody labelled: boundaries from its own data (beyond the method).

The method carves events at labelled or simulated boundaries; its authors leave
discovery without annotation open. Here nothing is trained and nothing privileged
is read. What is looked at depends on what there is:

    arms with poses    grips, first motion of something else, sharp turns, and the
                       way of the hand between them          (`discover_arm`)
    joints             ends of straight legs of the joints' path, and of the
                       fingers' opening and closing          (`changepoints`)
    pictures alone     where something begins to move, ends of stretches of even motion

All limits are physical (seconds, metres, shares of an episode's own range), so
an episode sampled at another rate is cut at the same times.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from wallwm_jax.episodes.record import Episode, EventSpan
from wallwm_jax.events import carve, motion
from wallwm_jax.events.caption import AXES_KNOWN, direction_text
from wallwm_jax.events.changepoints import leg_starts, onsets, turns
from wallwm_jax.events.discover_arm import LEAST_NEW, arm_labels
from wallwm_jax.events.discover_signals import (
    Seen,
    arms_with_poses,
    finger_groups,
    has_poses,
    reached_position,
    switches,
    watch,
)

WORDS = {
    "reach": "move the hand",
    "approach": "approach something",
    "align": "come close to something",
    "grasp": "close the gripper",
    "lift": "lift what is held",
    "move": "carry what is held",
    "lower": "lower what is held",
    "release": "open the gripper",
    "work": "move something with the hand",
    "retract": "move the hand away",
    "hold": "hold still",
    "fingers": "move the fingers",
    "arm": "move the arm",
    "motion": "something moves",
    "still": "nothing moves",
}
"""Label -> words. Objects have no names here: nobody said what they are."""

TOLERANCE = 0.05
LEAVE = 0.02  # of its range: this far off the line of a slower leg, an arm moves
PATIENCE_SECONDS = 0.3  # of being off by the tolerance that are worth another leg
LEAST_TURN = 0.6  # of the faster leg's velocity: a smaller change is a bow, no corner
SLOW_SHARE = 0.8  # of the mean speed of all legs: slower ones are all at rest
SHORTEST_SECONDS = 0.4  # of a leg of joints
APART_SECONDS = 0.3  # changes nearer than this are one
LEAST_JOINT = 0.05  # rad (or share of a gripper): a smaller range is noise
MOVED_SHARE = 0.1  # of its range: what moves less during a span stands


def discover(
    episode: Episode,
    *,
    min_length: int = 4,
    max_length: int = 32,
    pictures: bool = True,
    seen: Seen | None = None,
) -> list[EventSpan]:
    """Cuts an episode where its behaviour changes, without being told anything.

    Args:
      min_length: control steps; shorter spans join their longer neighbour.
      max_length: control steps; longer spans are cut where motion is slowest.
      pictures: whether to look at the films, which decodes all of them.
      seen: what `discover_signals.watch` saw, to look only once.

    Returns:
      Spans that cover [0, T) in order, with labels of `WORDS`.

    Raises:
      ValueError: when lengths disagree, or there is nothing to look at: no poses,
        no joints, and no picture of a resting camera.
    """
    episode.check()
    needs_pictures = not _own_signals(episode)
    if seen is None and (needs_pictures or pictures and has_poses(episode)):
        seen = watch(episode)
    labels, speed = _labels(episode, seen, min_length)
    spans = carve.merge_short(_spans(labels), min_length)
    spans = [dataclasses.replace(span, label=span.label.split()[0]) for span in spans]
    return [p for span in spans for p in carve.cut_long(span, speed, max_length, min_length)]


def _own_signals(episode: Episode) -> bool:
    return has_poses(episode) or _joint_path(episode) is not None


def _labels(
    episode: Episode, seen: Seen | None, min_length: int
) -> tuple[list[str], Float[np.ndarray, "steps"]]:
    """One label and one speed per step, from the best that the episode has."""
    if has_poses(episode):
        return _pose_labels(episode, seen)
    joints = _joint_path(episode)
    if joints is not None:
        return _joint_labels(episode, joints, min_length)
    if seen is None:
        raise ValueError(
            f"episode {episode.episode_id}: no poses, no joints and no resting camera; "
            "boundaries cannot be discovered, use carve.fixed_chunks"
        )
    return _picture_labels(seen, episode.control_hz, min_length)


def _pose_labels(episode: Episode, seen: Seen | None) -> tuple[list[str], np.ndarray]:
    """Labels of the arms; of two, those of the one that moves more during a stretch."""
    arms = arms_with_poses(episode)
    hands = [reached_position(episode, arm) for arm in arms]
    speeds = np.array([motion.speed(hand, episode.control_hz) for hand in hands])
    labels = []
    for arm, hand in zip(arms, hands, strict=True):
        real = bool(episode.action_mask[10 * arm + 9])
        closing = np.asarray(episode.gripper_command[:, arm], np.float64) * real
        labels.append(arm_labels(hand, closing, episode.control_hz, seen))
    out: list[str] = []
    for a, b in _stretches(list(zip(*labels, strict=True))):
        busier = int(np.argmax(speeds[:, a:b].mean(1)))
        out += [labels[busier][a]] * (b - a)
    return out, speeds.max(0)


def _joint_path(episode: Episode) -> np.ndarray | None:
    """Commanded joints f64[steps, n], else measured ones; None when there are none."""
    if episode.native is not None and episode.native.values.shape[1]:
        return np.asarray(episode.native.values, np.float64)
    if episode.state.shape[1]:
        return np.asarray(episode.state[:-1], np.float64)
    return None


def _finger_paths(episode: Episode, joints: np.ndarray) -> tuple[list[np.ndarray], list[int]]:
    """How far each hand is closed or opened [steps, 1], and the columns left to the arms.

    Hands are known by name, else by being switched, else by the gripper command.
    """
    names = episode.native.names if episode.native is not None else ()
    groups = finger_groups(names)
    paths = [joints[:, group].mean(1, keepdims=True) for group in groups]
    taken = [column for group in groups for column in group]
    if not groups and (taken := switches(joints)):
        # All switched columns are one hand, each told by its own pair of values.
        shut = joints[:, taken] > (joints[:, taken].min(0) + joints[:, taken].max(0)) / 2
        same = shut == shut[:, :1]
        paths = [np.where(same.mean(0) >= 0.5, shut, ~shut).mean(1, keepdims=True)]
    elif not groups:
        real = [arm for arm in range(episode.arms) if episode.action_mask[10 * arm + 9]]
        paths = [np.asarray(episode.gripper_command[:, [arm]], np.float64) for arm in real]
    return paths, [column for column in range(joints.shape[1]) if column not in taken]


def _joint_labels(
    episode: Episode, joints: np.ndarray, min_length: int
) -> tuple[list[str], np.ndarray]:
    fingers, columns = _finger_paths(episode, joints)
    arm, hz = joints[:, columns], episode.control_hz
    fixed = [t for path in fingers for t in _finger_edges(path, hz, min_length)]
    edges = fixed + _first_motions(arm, _legs(arm, hz, min_length), fixed, APART_SECONDS * hz)
    labels: list[str] = []
    for a, b in _pairs(_apart(edges, APART_SECONDS * hz), episode.steps):
        gripping = any(_moves(path, a, b) for path in fingers)
        label = "fingers" if gripping else "arm" if _moves(arm, a, b) else "still"
        # A number keeps neighbours apart: legs differ, and fingers may snap while all stands.
        same = label == "still" and a not in fixed
        labels += [label if same else f"{label} {a}"] * (b - a)
    speed = np.linalg.norm(np.diff(joints, axis=0, append=joints[-1:]), axis=-1) * hz
    return labels, speed


def _picture_labels(seen: Seen, hz: float, min_length: int) -> tuple[list[str], np.ndarray]:
    """Boundaries where something new begins to move, and where the amount of motion changes."""
    begins = [a + int(np.argmax(seen.new[a:b])) for a, b in motion.runs(seen.new > LEAST_NEW)]
    # Even motion is a straight leg of all the motion so far.
    edges = begins + _legs(np.cumsum(seen.moving)[:, None], hz, min_length)
    labels: list[str] = []
    for a, b in _pairs(_apart(edges, APART_SECONDS * hz), len(seen.moving)):
        moves = seen.moving[a:b].mean() > MOVED_SHARE * np.percentile(seen.moving, 90)
        labels += [f"{'motion' if moves else 'still'} {a}"] * (b - a)
    return labels, seen.moving


def _finger_edges(path: np.ndarray, hz: float, min_length: int) -> list[int]:
    """Where fingers that are told two things only are told the other, else ends of legs."""
    if len(np.unique(path)) > 2:
        return _legs(path, hz, min_length)
    return [int(t) + 1 for t in np.flatnonzero(np.diff(path[:, 0]))]


def _legs(path: np.ndarray, hz: float, min_length: int) -> list[int]:
    """Ends of straight legs of a path, by its own range."""
    extent = float(np.linalg.norm(np.ptp(path, axis=0))) if path.size else 0.0
    least = max(min_length, round(SHORTEST_SECONDS * hz))
    if len(path) < 2 * least or extent < LEAST_JOINT:
        return []
    found = leg_starts(
        path,
        tolerance=TOLERANCE * extent,
        patience=PATIENCE_SECONDS * hz,
        min_length=least,
    )
    return turns(path, found, least=LEAST_TURN, slow=SLOW_SHARE)


def _first_motions(arm: np.ndarray, starts: list[int], taken: list[int], least: float) -> list[int]:
    """Starts of the arm's legs, moved to their first motion.

    One that would come nearer than `least` to what the fingers do stays where the
    leg starts: there it is a boundary of its own.
    """
    leave = LEAVE * float(np.linalg.norm(np.ptp(arm, axis=0))) if starts else 0.0
    moved = onsets(arm, starts, leave=leave)
    return [
        start if any(abs(first - other) < least for other in taken) else first
        for start, first in zip(starts, moved, strict=True)
    ]


def _apart(edges: list[int], least: float) -> set[int]:
    """Drops those nearer than `least` to an earlier one in the list, so fingers go first."""
    kept: list[int] = []
    for edge in edges:
        if all(abs(edge - other) >= least for other in kept):
            kept.append(edge)
    return set(kept)


def _moves(path: np.ndarray, start: int, end: int) -> bool:
    """True when a path goes a good part of its range within [start, end)."""
    extent = np.linalg.norm(np.ptp(path, axis=0)) if path.size else 0.0
    within = np.linalg.norm(np.ptp(path[start:end], axis=0)) if path.size else 0.0
    return bool(extent >= LEAST_JOINT and within >= MOVED_SHARE * extent)


def _pairs(edges: set[int], steps: int) -> list[tuple[int, int]]:
    inner = sorted(e for e in edges if 0 < e < steps)
    return list(zip([0, *inner], [*inner, steps], strict=True))


def _stretches(values: list) -> list[tuple[int, int]]:
    """Half-open ranges of equal neighbours."""
    edges = [t for t in range(len(values)) if t == 0 or values[t] != values[t - 1]]
    return list(zip(edges, [*edges[1:], len(values)], strict=True))


def _spans(labels: list[str]) -> list[EventSpan]:
    return [EventSpan(start=a, end=b, label=labels[a]) for a, b in _stretches(labels)]


def caption_of_span(episode: Episode, span: EventSpan) -> str:
    """Template words for a discovered span: what moves, where to, and the gripper.

    Raises:
      ValueError: a label that `discover` does not give.
    """
    if span.label not in WORDS:
        raise ValueError(f"no words for label {span.label!r}; known are {sorted(WORDS)}")
    return ", ".join(word for word in (WORDS[span.label], motion_words(episode, span)) if word)


def motion_words(episode: Episode, span: EventSpan) -> str:
    """What was measured during any span: where the hand went, and the gripper; "" if nothing.

    Directions are said only where the world's axes are known, see `caption.AXES_KNOWN`.
    """
    words = []
    if has_poses(episode) and episode.embodiment in AXES_KNOWN:
        ways = [
            hand[span.end] - hand[span.start]
            for hand in (reached_position(episode, arm) for arm in range(episode.arms))
        ]
        words.append(direction_text(max(ways, key=np.linalg.norm)))
    words.append(_gripper_words(episode, span))
    return ", ".join(word for word in words if word)


def _gripper_words(episode: Episode, span: EventSpan) -> str:
    """State or change of the gripper of the arm that uses it most, "" when it has none."""
    real = [arm for arm in range(episode.arms) if episode.action_mask[10 * arm + 9]]
    if not real:
        return ""
    command = episode.gripper_command[span.start : span.end, real]
    closed = command[:, int(np.argmax(np.ptp(command, axis=0)))] > 0
    if closed[0] == closed[-1]:
        return "gripper closed" if closed[-1] else "gripper open"
    return "gripper closing" if closed[-1] else "gripper opening"
