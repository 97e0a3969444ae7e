"""Real episodes (physics only): the same task is cut the same way whatever the seed."""

import pytest

from wallwm_jax.events import build, caption, carve
from wallwm_jax.sim.metaworld import MetaWorldEnv
from wallwm_jax.sim.record import record_episode

EXPECTED = {
    "drawer-open": "reach approach align pull",
    "button-press": "reach approach align push hold",
    "window-open": "reach approach align slide hold",
    "reach": "reach align hold",
}


@pytest.mark.parametrize("task", EXPECTED)
def test_seeds_agree_on_the_behaviours(task):
    with MetaWorldEnv(task, views=()) as env:
        for seed in (0, 2, 100):
            episode = record_episode(env, seed)
            spans = carve.carve(episode)
            build.check_spans(episode, spans)
            labels = [span.label for span in spans]
            assert " ".join(labels) == EXPECTED[task], f"seed {seed}"


def test_a_real_episode_in_words():
    with MetaWorldEnv("drawer-open", views=()) as env:
        episode = record_episode(env, 0)
    texts = caption.captions_of(episode, carve.carve(episode))
    assert [t["action"] for t in texts] == [
        "move the gripper towards the drawer",
        "bring the gripper close to the drawer",
        "align the gripper with the drawer",
        "pull the drawer",
    ]
    assert texts[3]["segment"] == "pull the drawer, backwards, gripper open"
    assert {t["task"] for t in texts} == {"open the drawer"}
