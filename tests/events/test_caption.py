"""Captions: literals, and tracks that nest."""

import dataclasses

import numpy as np
import pytest

from wallwm_jax.episodes.record import EventSpan
from wallwm_jax.events import caption, carve


def test_the_drawer_pull_in_words(pull):
    episode = pull(tail=12)
    texts = caption.captions_of(episode, carve.carve(episode))
    assert [t["action"] for t in texts] == [
        "reach for the drawer to pull it",
        "approach the drawer to pull it",
        "align with the drawer to pull it",
        "pull the drawer",
        "hold still at the drawer",
    ]
    assert texts[0]["segment"] == "reach for the drawer to pull it, right, gripper open"
    assert texts[3]["segment"] == "pull the drawer, backwards, gripper closed"
    assert [t["subtask"] for t in texts] == ["go to the drawer"] * 3 + ["pull the drawer"] * 2
    assert {t["task"] for t in texts} == {"open the drawer"}


@pytest.mark.parametrize("max_length", [6, 12, 32])
def test_tracks_nest_and_cover(pull, max_length):
    """Every boundary of a coarse track is a boundary of each finer one."""
    episode = pull(tail=20)
    tracks = caption.tracks_of(episode, carve.carve(episode, max_length=max_length))
    finer = None
    for name in ("segment", "action", "subtask", "task"):
        spans = tracks[name]
        assert spans[0][0] == 0 and spans[-1][1] == episode.steps
        assert all(a[1] == b[0] for a, b in zip(spans, spans[1:], strict=False))
        edges = {start for start, _, _ in spans}
        assert finer is None or edges <= finer
        finer = edges


def test_a_cut_behaviour_is_one_action_and_two_segments(pull):
    episode = pull(tail=40)
    tracks = caption.tracks_of(episode, carve.carve(episode, max_length=24))
    holds = [text for *_, text in tracks["action"] if text.startswith("hold")]
    assert len(holds) == 1
    assert len(tracks["segment"]) > len(tracks["action"])


def test_chunks_say_the_instruction_and_nothing_more(pull):
    episode = pull()
    texts = caption.captions_of(episode, carve.fixed_chunks(episode, 16))
    assert all(set(t.values()) == {"open the drawer"} for t in texts)
    assert len(caption.tracks_of(episode, carve.fixed_chunks(episode, 16))["action"]) == 3


@pytest.mark.parametrize(
    ("way", "words"),
    [((0.1, 0, 0), "right"), ((-0.1, 0, 0.06), "left and up"), ((0, 0.004, 0), ""),
     ((0, -0.1, -0.09), "backwards and down"), ((0.02, 0.1, 0.1), "forwards and up")],
)  # fmt: skip
def test_directions(way, words):
    assert caption.direction_text(np.array(way)) == words


def test_a_carry_names_its_goal(pull):
    episode = dataclasses.replace(pull(), nouns={"object": "puck", "goal": "the blue bin"})
    spans = [EventSpan(start=a, end=b, label=c) for a, b, c in
             [(0, 10, "grasp"), (10, 20, "lift"), (20, 40, "move"), (40, 48, "retract")]]
    texts = caption.captions_of(episode, spans)
    assert texts[0]["subtask"] == "grasp, lift and carry the puck to the blue bin"
    assert texts[2]["action"] == "carry the puck to the blue bin"
    assert texts[3]["subtask"] == "leave the puck"


def test_every_label_has_words_and_others_are_refused(pull):
    episode = pull()
    for label in caption.ACTION:
        spans = [EventSpan(start=0, end=48, label=label)]
        assert all(caption.captions_of(episode, spans)[0].values())
    with pytest.raises(ValueError, match="no words for label 'juggle'"):
        caption.captions_of(episode, [EventSpan(start=0, end=48, label="juggle")])
