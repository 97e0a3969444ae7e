"""Our Muon against torch.optim.Muon on the same gradients.

torch computes Newton-Schulz in bfloat16 throughout, ours is run in bfloat16 and
in float32. Two computations of the same polynomial differ by roundings of 2^-9
in each of fifteen products, which the "standard" coefficients amplify in the
small singular values (their slope at 0 is 485). At most 3.5 % of what six steps
moved were measured; momentum, decay and scale are the same.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from wallwm_jax.optim.build import make_optimizer
from wallwm_jax.optim.schedules import warmup_constant

SHAPES = {"square": (48, 48), "wide": (32, 96), "tall": (96, 32)}
STEPS, RATE, DECAY = 6, 0.02, 0.1

TOLERANCE = 0.06
"""Of the norm of what was moved: room for other roundings than those measured."""


def gradients(seed):
    """Power-law spectra, as momenta have; not white noise, whose spectrum is flat."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, (m, n) in SHAPES.items():
        k = min(m, n)
        left, right = (np.linalg.qr(rng.normal(size=(s, k)))[0] for s in (m, n))
        found[name] = ((left / (1 + np.arange(k))) @ right.T).astype(np.float32)
    return found


def theirs(start, nesterov):
    params = [torch.nn.Parameter(torch.tensor(start[name])) for name in SHAPES]
    optimizer = torch.optim.Muon(
        params,
        lr=RATE,
        weight_decay=DECAY,
        momentum=0.95,
        nesterov=nesterov,
        adjust_lr_fn="match_rms_adamw",
    )
    for step in range(STEPS):
        grads = gradients(step + 1)
        for parameter, name in zip(params, SHAPES, strict=True):
            parameter.grad = torch.tensor(grads[name])
        optimizer.step()
    return {name: p.detach().numpy() for name, p in zip(SHAPES, params, strict=True)}


def ours(start, nesterov, dtype):
    optimizer = make_optimizer(
        [(".*", "muon")],
        schedule=warmup_constant(0),
        learning_rate=RATE,
        weight_decay=DECAY,
        decay=[(".*", True)],
        clip_norm=None,
        muon_nesterov=nesterov,
        muon_compute_dtype=dtype,
    )
    params = {name: jnp.asarray(x) for name, x in start.items()}
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for step in range(STEPS):
        grads = {name: jnp.asarray(x) for name, x in gradients(step + 1).items()}
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return {name: np.asarray(x) for name, x in params.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_six_steps_move_the_parameters_as_torch_does(dtype, record_property):
    """Plain momentum: with it the two definitions are the same but for a scale that
    Newton-Schulz ignores. Decay and the 0.2 sqrt(max) of the update are equal too."""
    start = gradients(0)
    want, got = theirs(start, nesterov=False), ours(start, False, dtype)
    for name in SHAPES:
        moved = np.linalg.norm(want[name] - start[name])
        error = np.linalg.norm(got[name] - want[name]) / moved
        record_property("parity_error", float(error))
        assert error < TOLERANCE, (name, error)


def test_nesterov_differs_by_the_bias_correction_only(record_property):
    """torch mixes gradient and momentum without correction: 0.05 g + 0.95 m with a
    momentum still short. Ours corrects both, so the first updates weigh the gradient less;
    later ones agree. Same direction to first order: the parameters stay close."""
    start = gradients(0)
    want, got = theirs(start, nesterov=True), ours(start, True, "bfloat16")
    for name in SHAPES:
        moved = want[name] - start[name]
        ours_moved = got[name] - start[name]
        cosine = np.sum(moved * ours_moved) / np.linalg.norm(moved) / np.linalg.norm(ours_moved)
        record_property("parity_error", float(1 - cosine))
        assert cosine > 0.98, (name, cosine)
