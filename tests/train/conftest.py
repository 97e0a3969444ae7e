"""One toy run, trained once, for all tests of the training room."""

import shutil

import pytest
from toy_run import make_data, toy_config

from wallwm_jax.train.loop import train
from wallwm_jax.train.run import build_run


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A folder with encoded toy data and nothing trained; do not train in it."""
    config = toy_config(tmp_path_factory.mktemp("toy"))
    make_data(config)
    return config


def copy_of(config, folder):
    """The same config over a copy of its folder."""
    shutil.copytree(config.workdir, folder, dirs_exist_ok=True)
    other = config.copy_and_resolve_references()
    other.workdir = str(folder)
    return other


@pytest.fixture(scope="session")
def trained(prepared, tmp_path_factory):
    """Both stages trained to their end, without interruption."""
    config = copy_of(prepared, tmp_path_factory.mktemp("trained"))
    for stage in ("video", "action"):
        config.stage = stage
        train(build_run(config))
    return config


@pytest.fixture
def fresh(prepared, tmp_path):
    """A config whose folder a test may train in."""
    return copy_of(prepared, tmp_path)
