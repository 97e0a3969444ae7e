"""Fixtures of the tower tests; what they are made of is in towers.py."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from towers import DIMS, shaken, small_denoiser

from wallwm_jax.input.batch import Batch
from wallwm_jax.models.denoiser import Denoiser


@pytest.fixture(scope="session")
def denoiser() -> Denoiser:
    return small_denoiser()


@pytest.fixture(scope="session")
def batch() -> Batch:
    return jax.tree.map(jnp.asarray, Batch.fake(DIMS, seed=3))


@pytest.fixture(scope="session")
def fresh(denoiser, batch):
    """Parameters as initialised."""
    return nn.meta.unbox(jax.jit(denoiser.init)(jax.random.key(0), batch.latents, batch))


@pytest.fixture(scope="session")
def params(fresh):
    return shaken(fresh)
