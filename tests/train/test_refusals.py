"""What a user can get wrong ends in one line that says what, where and what to do."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from wallwm_jax.errors import UserError
from wallwm_jax.train.build import build_denoiser, build_objective
from wallwm_jax.train.checkpoint import CheckpointError, Checkpoints
from wallwm_jax.train.encode import open_encoded
from wallwm_jax.train.loop import train
from wallwm_jax.train.run import build_run
from wallwm_jax.train.saved import latest_step
from wallwm_jax.train.stages import stage_named

ROOT = Path(__file__).parents[2]


def one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    return text


def test_unknown_stage():
    with pytest.raises(ValueError, match="videos.*video, action, scratch") as caught:
        stage_named("videos")
    one_line(caught.value)


def test_unknown_key_of_a_section_names_the_nearest(prepared):
    config = prepared.copy_and_resolve_references()
    with config.unlocked():
        config.objective.shfit = 3.0
    with pytest.raises(ValueError, match=r"config.objective.*'shfit'.*'shift'") as caught:
        build_objective(config, 16)
    one_line(caught.value)


@pytest.mark.parametrize(
    "typo", ["--config.stgae=action", "--config.stages.video.stepz=3", "--config.seed=one"]
)
@pytest.mark.parametrize("file", [["--config=configs/metaworld.py"], []])
def test_a_typo_on_the_command_line_is_one_line(typo, file):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.train", *file, typo],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in done.stderr
    assert typo.split("=")[0].split(".")[-1] in errors[0]


def test_stage_without_the_one_it_starts_from(fresh):
    fresh.stage = "action"
    with pytest.raises(CheckpointError, match="'action' starts from stage 'video'") as caught:
        build_run(fresh)
    one_line(caught.value)


def test_a_checkpoint_of_another_size_is_refused_and_kept(trained):
    config = trained.copy_and_resolve_references()
    config.stage = "video"
    config.video.ffn = 64
    with pytest.raises(CheckpointError, match=r"ffn: checkpoint 48, config 64") as caught:
        train(build_run(config))
    one_line(caught.value)
    assert latest_step(Path(trained.workdir) / "video" / "checkpoints") == 12


def test_runtime_choices_do_not_make_another_model(trained):
    config = trained.copy_and_resolve_references()
    config.stage = "video"
    config.video.remat = "full"
    assert train(build_run(config))["resumed_from"] == 12


def test_data_that_was_not_made(tmp_path):
    with pytest.raises(FileNotFoundError, match="prepare_data") as caught:
        open_encoded(tmp_path)
    one_line(caught.value)


def test_a_damaged_latent_shard(fresh):
    shard = next((Path(fresh.workdir) / "encoded" / "train").glob("*.array_record"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    fresh.stage = "video"
    with pytest.raises(UserError, match=shard.name) as caught:
        build_run(fresh)
    one_line(caught.value)


def test_an_unwritable_run_folder(tmp_path):
    """A file where the folder should be refuses even the superuser."""
    blocked = tmp_path / "run"
    blocked.write_text("")
    blocked.chmod(stat.S_IRUSR)
    with pytest.raises(CheckpointError, match="workdir") as caught:
        Checkpoints(blocked / "checkpoints")
    one_line(caught.value)


def test_towers_that_do_not_fit(prepared):
    config = prepared.copy_and_resolve_references()
    config.text.width = 14
    encoded = open_encoded(Path(prepared.workdir) / "encoded")
    with pytest.raises(ValueError, match="14.*12"):
        build_denoiser(config, encoded)
    config = prepared.copy_and_resolve_references()
    config.video.in_channels = 16
    with pytest.raises(ValueError, match="16 latent channels"):
        build_denoiser(config, encoded)


@pytest.mark.parametrize("module", ["experiments.train", "experiments.prepare_data"])
def test_an_entry_point_says_which_option_moves_an_unwritable_folder(module, tmp_path):
    blocked = tmp_path / "run"
    blocked.write_text("")
    done = subprocess.run(
        [sys.executable, "-m", module, f"--config.workdir={blocked / 'inside'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert str(blocked) in line and "--config.workdir" in line
