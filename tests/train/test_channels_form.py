"""The other form of conditioning and the tubes through the whole loop, from the same code."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.evaluate import policy_of
from wallwm_jax.evaluate.offline import batches, predict, video_report
from wallwm_jax.evaluate.run import open_split
from wallwm_jax.train.build import build_denoiser
from wallwm_jax.train.encode import open_encoded
from wallwm_jax.train.loop import train
from wallwm_jax.train.run import build_run


def beside(config):
    """Observation beside the latents: 4 noisy + 4 mask + 4 observed channels."""
    config.video.update(dict(conditioning="channels", in_channels=12))
    return config


def test_it_trains_both_stages_and_rolls_out(fresh):
    config = beside(fresh)
    config.objective.update(dict(p_tube=0.5, p_tube_cond=0.5, tube_sizes=(1, 1), lambda_mask=2.0))
    for stage in ("video", "action"):
        config.stage = stage
        train(build_run(config))
        log = (Path(config.workdir) / stage / "metrics.jsonl").read_text().splitlines()
        losses = [json.loads(line)["loss"] for line in log]
        assert np.isfinite(losses).all() and np.mean(losses[-3:]) < np.mean(losses[:3])
    folder = Path(config.workdir)
    held_out = open_split(folder / "dataset", folder / "encoded", "test")
    policy = policy_of(config, 4)
    assert policy.denoiser.video_config.conditioning == "channels"  # from the checkpoint
    guesses = predict(policy, held_out, jax.random.key(0))
    assert [len(x) for x in guesses] == held_out.events.index.length.tolist()
    assert all(np.isfinite(x).all() for x in guesses)
    numbers, _ = video_report(policy, held_out, 1, jax.random.key(1))
    assert np.isfinite(list(numbers.values())).all()
    assert next(batches(policy, held_out)).latents.shape[-1] == 4


def test_channels_that_do_not_fit_the_form_are_refused(prepared):
    config = prepared.copy_and_resolve_references()
    config.video.conditioning = "channels"
    encoded = open_encoded(Path(prepared.workdir) / "encoded")
    with pytest.raises(ValueError, match="in_channels=12") as caught:
        build_denoiser(config, encoded)
    assert "\n" not in str(caught.value)
