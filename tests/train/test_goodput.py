"""Every second of a run is somewhere, and nowhere twice."""

import json
import random

import pytest
from mini_run import mini_run

from wallwm_jax.train.goodput import PARTS, Goodput, GoodputLog, summarise
from wallwm_jax.train.loop import train


class Clock:
    """Seconds as they are set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_parts_add_up_to_the_wall_time_and_are_what_was_entered():
    clock, rng = Clock(), random.Random(0)
    goodput = Goodput(clock=clock)
    expected = dict.fromkeys(PARTS, 0.0)
    part = "init"
    for _ in range(200):
        for _ in range(rng.randint(1, 3)):  # looking at the clock changes nothing
            seconds = rng.random()
            clock.now += seconds
            expected[part] += seconds
            goodput.seconds()
        part = rng.choice(PARTS)
        goodput.enter(part)
    found = goodput.seconds()
    assert found.pop("wall") == pytest.approx(clock.now - 100)
    assert found == pytest.approx(expected)
    with pytest.raises(KeyError):
        goodput.enter("coffee")


def test_attempts_that_were_killed_count_with_what_they_wrote(tmp_path):
    path = tmp_path / "goodput.jsonl"
    for attempt in range(3):
        clock = Clock()
        goodput = Goodput(clock=clock)
        log = GoodputLog(path, goodput, every_s=10)
        goodput.enter("step")
        for step in range(1, 31):
            clock.now += 1
            log.write(step)
        if attempt == 1:  # killed while writing
            path.write_text(path.read_text() + '{"attempt": 2, "reach')
    total = summarise(path)
    assert total["attempts"] == 3
    assert total["wall"] == total["step"] == pytest.approx(3 * 21)  # lines at 1, 11, 21
    assert total["goodput"] == 1
    with pytest.raises(ValueError, match="no attempt"):
        summarise(tmp_path / "nothing.jsonl")


def test_a_real_run_accounts_for_its_time_and_for_what_was_lost(tmp_path):
    first = mini_run(tmp_path, steps=100)
    first.loader.cut_at, first.loader.slow_s = 7, 0.02
    with pytest.raises(RuntimeError, match="power cut"):
        train(first)
    again = mini_run(tmp_path, steps=10)
    again.loader.slow_s = 0.05
    result = train(again)
    assert result["resumed_from"] == 4
    lines = [json.loads(x) for x in (tmp_path / "goodput.jsonl").read_text().splitlines()]
    assert {line["attempt"] for line in lines} == {1, 2}
    for line in lines:
        assert sum(line[part] for part in PARTS) == pytest.approx(line["wall"], rel=0.01)
    # Steps 4 and 5 were in the log when the power went; 6 was not.
    assert lines[-1]["reached"] == 10
    assert 2 * 0.05 <= lines[-1]["lost"] < 0.5 * lines[-1]["wall"]
    assert lines[0]["lost"] == 0 and lines[-1]["data"] >= 4 * 0.05
    steps = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps] == list(range(10))
    assert all(line["data_s"] >= 0.02 and line["tokens_per_s"] > 0 for line in steps)
    both = summarise(tmp_path / "goodput.jsonl")
    assert both["wall"] >= result["seconds"]
