"""Fixtures of the events room."""

import pytest
from toy_episode import pull_episode


@pytest.fixture
def pull():
    """The factory `pull_episode(seed, tail, size)`."""
    return pull_episode
