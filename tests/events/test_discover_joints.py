"""Boundary discovery on real joints: where a humanoid's phases begin, and what chance would find.

Nobody labelled these clips. What its arm does is known all the same: the published lengths of
its links turn joints into the place of the hand, in metres, which discovery never computes. A
phase begins, by the limits that simulated episodes are carved with,

    grasp   when the fingers have closed by 15 %
    lift    when the hand is 2 cm from where they were shut
    hold    when it comes within 2 cm of where they open again

and these moments are taken twice: in what the robot was told and in what its encoders
measured. The arm follows late and starts slowly, so a phase begins somewhere between the two.
"""

import itertools
import json

import av
import numpy as np
import pytest
from toy_signals import joint_episode

from wallwm_jax.events import behaviour, boundaries, motion
from wallwm_jax.events.discover import discover
from wallwm_jax.events.discover_arm import LEFT_METRES
from wallwm_jax.events.discover_signals import switches

NO_LIMIT = 10**6
SLACK_SECONDS = 0.2

# Of a Unitree G1 with 29 joints, by its maker's public description: where each joint sits in the
# frame of the one before (metres), how that is tilted about x (rad), and its axis.
RIGHT_ARM = (
    ((0.004, -0.100, 0.248), -0.279, 1),
    ((0.0, -0.038, -0.014), 0.279, 0),
    ((0.0, -0.006, -0.103), 0.0, 2),
    ((0.016, 0.0, -0.081), 0.0, 1),
    ((0.100, -0.002, -0.010), 0.0, 0),
    ((0.038, 0.0, 0.0), 0.0, 1),
    ((0.046, 0.0, 0.0), 0.0, 2),
)
PALM = (0.15, 0.0, 0.0)  # from the last joint to what the hand holds
ARM, FINGERS = slice(7, 14), slice(20, 26)  # columns of the right side


def about(axis, angles):
    """Rotations [t, 3, 3] about a coordinate axis."""
    out = np.tile(np.eye(3), (len(angles), 1, 1))
    i, j = (axis + 1) % 3, (axis + 2) % 3
    out[:, i, i] = out[:, j, j] = np.cos(angles)
    out[:, j, i] = np.sin(angles)
    out[:, i, j] = -out[:, j, i]
    return out


def hand_path(joints):
    """Where the right hand is [t, 3], metres from the middle of the shoulders."""
    place, turn = np.zeros((len(joints), 3)), np.tile(np.eye(3), (len(joints), 1, 1))
    for (offset, tilt, axis), angle in zip(RIGHT_ARM, joints.T, strict=True):
        place = place + turn @ offset
        turn = turn @ about(0, np.array([tilt])) @ about(axis, angle)
    return place + turn @ PALM


def closes(fingers, top):
    """Steps by which fingers have closed by 15 % and by 85 % before step `top`; they fall."""
    widest = int(np.argmax(fingers[:top]))
    low = fingers[widest:top].min()
    level = (fingers - low) / (fingers[widest] - low)
    half = widest + int(np.argmax(level[widest:] < 0.5))
    begun = widest + int(np.flatnonzero(level[widest:half] > 0.85)[-1])
    return begun, half + int(np.argmax(level[half:] < 0.15))


def opens(fingers, top):
    """Last step after `top` at which fingers are not yet open by 30 % of what they open."""
    widest = top + int(np.argmax(fingers[top:]))
    low = fingers[:widest][-(widest - top) :].min()
    still = fingers[top:widest] < low + 0.3 * (fingers[widest] - low)
    return top + int(np.flatnonzero(still)[-1])


def phases(episode):
    """[earliest, latest] step at which grasp, lift and hold begin, as the module says."""
    told, measured = (
        motion.smooth(np.asarray(values, np.float64))
        for values in (episode.native.values, episode.state[:-1])
    )
    top = int(np.argmax(hand_path(told[:, ARM])[:, 2]))
    shut = closes(told[:, FINGERS].mean(1), top)[1]
    opened = opens(told[:, FINGERS].mean(1), top)
    found = []
    for values in (told, measured):
        hand = hand_path(values[:, ARM])
        left = np.linalg.norm(hand - hand[shut], axis=-1)[shut:] > LEFT_METRES
        away = np.linalg.norm(hand - hand[opened], axis=-1)[:opened] > behaviour.ARRIVED_METRES
        grasp = closes(values[:, FINGERS].mean(1), top)[0]
        found.append((grasp, shut + int(np.argmax(left)), int(np.flatnonzero(away)[-1]) + 1))
    return [sorted(pair) for pair in zip(*found, strict=True)]


def misses(edges, spans):
    """Steps from each [earliest, latest] to the nearest boundary, 0 inside; all boundaries free."""
    return [min(max(a - edge, edge - b, 0) for edge in edges) for a, b in spans]


def shuffled(edges, steps, rng):
    """As many boundaries with the same spans between them, in another order."""
    return np.cumsum(rng.permutation(np.diff([0, *edges, steps])))[:-1].tolist()


@pytest.fixture(scope="module")
def clips(real_data):
    """(episode, its boundaries, where its phases begin) of the twelve real clips."""
    root = real_data("g1_bottle_lerobot_v21")
    info = json.loads((root / "meta/info.json").read_text())
    names = info["features"]["action"]["names"][0]
    paths = sorted(root.glob("data/*/*.parquet"))
    assert len(paths) == 12
    episodes = [joint_episode(path, names, float(info["fps"])) for path in paths]
    return [(e, boundaries.inner(discover(e, max_length=NO_LIMIT)), phases(e)) for e in episodes]


def test_the_reference_is_where_a_hand_can_be(clips):
    """The bottle is carried up and to the side, by less than an arm, and phases follow in order."""
    for episode, _, spans in clips:
        hand = hand_path(motion.smooth(np.asarray(episode.state[:-1], np.float64))[:, ARM])
        grasp, lift, hold = ((a + b) // 2 for a, b in spans)
        assert grasp < lift < hold, episode.episode_id
        way = hand[hold] - hand[grasp]
        assert hand[lift:hold, 2].max() - hand[grasp, 2] > behaviour.LIFTED_METRES
        assert 0.15 < np.linalg.norm(way) < 0.5 and way[1] < -0.1  # to its right
        # Told and measured moments lie apart by the lag of an arm, not by more.
        assert max(b - a for a, b in spans) <= 0.4 * episode.control_hz


def cap_path(film, count):
    """Middle of the can's yellow cap [count, 2] in the first pictures of a film, 320 across."""
    places = []
    with av.open(str(film)) as container:
        for picture in itertools.islice(container.decode(video=0), count):
            red, green, blue = picture.to_ndarray(format="rgb24")[::2, ::2].astype(int).T
            yellow = (red > 150) & (green > 130) & (blue < 100) & (abs(red - green) < 60)
            places.append([np.median(axis) for axis in np.nonzero(yellow)])
    return motion.smooth(np.array(places))


def test_the_reference_is_when_the_can_leaves_its_place_in_the_film(clips, real_data):
    """Six clips have pictures: the cap, 7 cm and 60 pixels wide, goes 2 cm as the lift begins.

    Give or take 0.3 s: fingers nudge a can before they lift it, and a film has a delay of its own.
    """
    films = {film.stem: film for film in real_data("g1_bottle_lerobot_v21").rglob("*.mp4")}
    seen = [(e, spans) for e, _, spans in clips if e.episode_id in films]
    assert len(seen) == 6
    for episode, (_, lift, _) in seen:
        second = round(episode.control_hz)
        place = cap_path(films[episode.episode_id], lift[1] + second)[lift[0] - second // 2 :]
        gone = np.linalg.norm(place - np.median(place[:5], axis=0), axis=-1) > 17
        left = lift[0] - second // 2 + int(np.argmax(gone))
        assert gone.any() and misses([left], [lift])[0] <= 0.3 * second, (left, lift)


def test_every_phase_of_every_real_g1_clip_is_found(clips):
    """Approach, grasp, lift and hold: a boundary where each begins, give or take 0.2 s."""
    for episode, edges, spans in clips:
        slack = SLACK_SECONDS * episode.control_hz
        off = misses(edges, spans)
        assert max(off) <= slack, (episode.episode_id, edges, spans, off)
        # The approach is what comes before, and three phases are three boundaries.
        at = [min(edges, key=lambda e: abs(e - (a + b) / 2)) for a, b in spans]
        assert 0 < at[0] < at[1] < at[2]
    rates = [len(edges) * e.control_hz / e.steps for e, edges, _ in clips]
    assert np.mean(rates) < 1.5  # a second


def test_boundaries_in_another_order_find_far_fewer_phases(clips):
    """Chance: the same number of boundaries, with the same spans between them or equal ones."""
    rng = np.random.default_rng(0)

    def found(edges_of):
        return sum(
            max(misses(edges_of(e, edges), spans)) <= SLACK_SECONDS * e.control_hz
            for e, edges, spans in clips
        )

    assert found(lambda e, edges: edges) == 12
    chance = [found(lambda e, edges: shuffled(edges, e.steps, rng)) for _ in range(100)]
    assert np.mean(chance) < 7 and max(chance) < 12
    even = found(lambda e, edges: np.linspace(0, e.steps, len(edges) + 2)[1:-1].tolist())
    assert even < 9


def test_boundaries_of_simulated_gr1_clips_are_changes_of_motion(real_data):
    """44 nameless columns: hands are known as switches, and joints turn more where we cut."""
    root = real_data("gr1_sim_lerobot_v20") / "robot_sim.PickNPlace"
    paths = sorted(root.glob("data/*/*.parquet"))
    assert len(paths) == 5
    for path in paths:
        episode = joint_episode(path, [f"motor_{i}" for i in range(44)], 20.0)
        values = np.asarray(episode.native.values, np.float64)
        hands = switches(values)
        assert hands and set(hands) <= set(range(7, 13)) | set(range(29, 35))
        edges = boundaries.inner(discover(episode, max_length=NO_LIMIT))
        assert 5 <= len(edges) <= episode.steps / 20
        way = motion.smooth(np.delete(values, hands, 1), 5)
        change = np.linalg.norm(way[16:] + way[:-16] - 2 * way[8:-8], axis=-1)
        at = [change[e - 8] for e in edges if 8 <= e < episode.steps - 8]
        assert np.mean(at) > 1.2 * change.mean()
        # A hand told to close for a while is a boundary, to the frame.
        told = np.flatnonzero(np.abs(np.diff(values[:, hands[-1]])) > 1) + 1
        calm = np.diff([0, *told, episode.steps]) >= 10
        assert set(told[calm[:-1] & calm[1:]].tolist()) <= set(edges)
