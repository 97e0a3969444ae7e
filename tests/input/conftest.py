"""Fixtures of the input room: one small latent cache for all tests."""

import pytest
from synthetic_events import build, loader_settings, make_event


@pytest.fixture(scope="session")
def events():
    return [make_event(i) for i in range(60)]


@pytest.fixture(scope="session")
def latents(events, tmp_path_factory):
    return build(events, tmp_path_factory.mktemp("cache") / "latents", events_per_shard=25)


@pytest.fixture(scope="session")
def settings(latents):
    return loader_settings(latents)
