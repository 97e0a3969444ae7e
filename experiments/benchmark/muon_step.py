"""Muon's step beside other optimizers', and what bfloat16 does to its largest singular value.

    python -m experiments.benchmark.muon_step
    python -m experiments.benchmark.muon_step --layers=30 --width=3072 --ffn=14336 --dtype=bfloat16
    python -m experiments.benchmark.muon_step --numerics [--shapes=1024x4096,3072x14336]

A layer has eight width x width and two width x ffn matrices, as Wan's blocks
do; the second command is the 300 matrices of Wan2.2-TI2V-5B, for one large GPU.
Every optimizer updates them in one program (torch.optim.Muon: matrix by matrix,
as it does); they take turns, and times are medians.

--numerics trains a Wan of --layers, --width and --ffn on moving waves and orthogonalises
the momenta that result, then matrices with spectra of several decay laws. The figure
is the largest singular value in bfloat16 over the one of the exact polynomial. Where
Muon itself takes too long, --trainer=adamw trains; the momenta are of the same gradients:

    python -m experiments.benchmark.muon_step --numerics --trainer=adamw --shapes= --steps=6 \
        --layers=1 --width=3072 --ffn=14336
"""

import importlib.util
import json
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from optax.contrib import MuonDimensionNumbers

from experiments.common import quiet
from wallwm_jax.models.wan_config import WAN_SIZES, WanConfig
from wallwm_jax.models.wan_dit import WanDiT
from wallwm_jax.optim.build import make_optimizer
from wallwm_jax.optim.matrices import to_matrices
from wallwm_jax.optim.newton_schulz import (
    coefficients_of,
    newton_schulz,
    newton_schulz_flops,
)
from wallwm_jax.optim.rules import find_rule, path_name
from wallwm_jax.optim.schedules import warmup_constant
from wallwm_jax.train.build import LABELS, MATRIX_AXES

FLAGS = flags.FLAGS
flags.DEFINE_integer("layers", 2, "of the tower", lower_bound=1)
flags.DEFINE_integer("width", 128, "of the square matrices", lower_bound=1)
flags.DEFINE_integer("ffn", 512, "the wide matrices' longer side", lower_bound=1)
flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "of our Newton-Schulz products")
flags.DEFINE_integer("repeats", 10, "steps of each optimizer", lower_bound=1)
flags.DEFINE_bool("numerics", False, "measure singular values instead of time")
flags.DEFINE_list("shapes", ["256x256", "256x1024"], "for --numerics")
flags.DEFINE_list("decays", [], "for --numerics: spectra by name; empty: all")
flags.DEFINE_enum("trainer", "muon", ["muon", "adamw"], "of the training that gives momenta")
flags.DEFINE_integer("steps", 40, "of the training that gives momenta; 0: none", lower_bound=0)
flags.DEFINE_string("json", "", "file for the results")

RATE, BETA, DECAY = 1e-3, 0.95, 0.1


def shapes() -> dict[str, tuple[int, int, int]]:
    """The parameters: stacked kernels, as a scan over layers leaves them."""
    layers, width, ffn = FLAGS.layers, FLAGS.width, FLAGS.ffn
    squares = {f"square{i}": (layers, width, width) for i in range(8)}
    return squares | {"up": (layers, width, ffn), "down": (layers, ffn, width)}


def optimizers() -> dict[str, optax.GradientTransformation]:
    """Those that run in JAX, by name."""
    common = dict(
        schedule=warmup_constant(0), learning_rate=RATE, weight_decay=DECAY, clip_norm=None
    )
    rules = dict(labels=[(".*", "muon")], decay=[(".*", True)])
    numbers = {name: MuonDimensionNumbers(1, 2) for name in shapes()}
    return {
        "ours": make_optimizer(
            **rules, **common, muon_beta=BETA, muon_compute_dtype=jnp.dtype(FLAGS.dtype)
        ),
        "adamw": make_optimizer(**rules, **common, algorithm="adamw"),
        "optax.contrib.muon": optax.contrib.muon(
            RATE,
            beta=BETA,
            weight_decay=DECAY,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=numbers,
        ),
    }


def jax_step(optimizer: optax.GradientTransformation) -> Callable[[], None]:
    """One update, in place, waited for."""

    @jax.jit
    def draw(key: jax.Array) -> dict[str, jax.Array]:
        return {
            n: jax.random.normal(jax.random.fold_in(key, i), s)
            for i, (n, s) in enumerate(shapes().items())
        }

    def update(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    held = [draw(jax.random.key(0))]
    held.append(jax.jit(optimizer.init)(held[0]))
    grads = draw(jax.random.key(1))
    compiled = jax.jit(update, donate_argnums=(0, 1)).lower(*held, grads).compile()

    def step() -> None:
        held[:] = jax.block_until_ready(compiled(*held, grads))

    return step


def torch_step() -> Callable[[], None]:
    """torch.optim.Muon on the same matrices, each a parameter; on the GPU where torch has one."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    params = []
    for layers, *size in shapes().values():
        for _ in range(layers):
            parameter = torch.nn.Parameter(torch.randn(*size, device=device))
            parameter.grad = torch.randn(*size, device=device)
            params.append(parameter)
    optimizer = torch.optim.Muon(
        params, lr=RATE, weight_decay=DECAY, momentum=BETA, adjust_lr_fn="match_rms_adamw"
    )

    def step() -> None:
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def timed() -> dict[str, Any]:
    """Median seconds of each optimizer's step, measured in turns."""
    steps = {name: jax_step(tx) for name, tx in optimizers().items()}
    if importlib.util.find_spec("torch"):
        steps["torch.optim.Muon"] = torch_step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(FLAGS.repeats):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
    flops = sum(
        count * min(newton_schulz_flops(m, n).values()) for count, m, n in shapes().values()
    )
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "device": jax.devices()[0].device_kind,
        "matrices": sum(count for count, *_ in shapes().values()),
        "newton_schulz_tflop": flops / 1e12,
        "seconds": median,
        "times_ours": {name: value / median["ours"] for name, value in median.items()},
        "ours_tflop_per_second": flops / median["ours"] / 1e12,
    }


def trained_momenta(steps: int) -> Iterator[tuple[str, np.ndarray]]:
    """Momenta of a Wan that learns to denoise moving waves: (path, [k, m, n])."""
    sizes = dict(width=FLAGS.width, ffn=FLAGS.ffn, layers=FLAGS.layers, heads=FLAGS.width // 32)
    if FLAGS.width >= 1024:
        sizes["heads"] = FLAGS.width // 128  # as the published sizes have it
    wan = WanConfig(**(WAN_SIZES["tiny"] | sizes | dict(dtype="float32")))
    module, key = WanDiT(wan), jax.random.key(0)
    rate = 3e-3 if FLAGS.width < 1024 else 3e-4
    optimizer = make_optimizer(
        LABELS,
        schedule=warmup_constant(5),
        learning_rate=rate,
        algorithm=FLAGS.trainer,
        matrix_axes=MATRIX_AXES,
    )
    momentum = optax.trace(0.95)

    def batch(key: jax.Array) -> tuple[jax.Array, ...]:
        """Noised waves of random direction and speed, their times, and the velocity to learn."""
        turn, noise, times = jax.random.split(key, 3)
        f, h, w = jnp.meshgrid(
            *(jnp.arange(n, dtype=jnp.float32) for n in (4, 8, 8)), indexing="ij"
        )
        speed = jax.random.normal(turn, (4, 3, 1, 1, 1, wan.in_channels))
        grid = jnp.stack([f, h, w])[None, ..., None]
        clean = jnp.sin(jnp.sum(speed * grid, 1))
        sigma = jax.random.uniform(times, (4,))
        dirt = jax.random.normal(noise, clean.shape)
        share = sigma[:, None, None, None, None]
        return (
            (1 - share) * clean + share * dirt,
            sigma * 1000,
            (dirt - clean)[..., : wan.out_channels],
        )

    text = jnp.ones((4, 3, wan.text_width))
    params = {"video": nn.meta.unbox(module.init(key, *batch(key)[:2], text)["params"])}

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: list, key: jax.Array) -> tuple[Any, Any]:
        z, times, velocity = batch(key)

        def loss(p: Any) -> jax.Array:
            return jnp.mean((module.apply({"params": p["video"]}, z, times, text) - velocity) ** 2)

        grads = jax.grad(loss)(params)
        updates, state[0] = optimizer.update(grads, state[0], params)
        _, state[1] = momentum.update(grads, state[1])
        return optax.apply_updates(params, updates), state

    state = [optimizer.init(params), momentum.init(params)]
    for number in range(steps):
        params, state = step(params, state, jax.random.fold_in(key, number))
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(state[1].trace):
        name = path_name(key_path)
        if find_rule(LABELS, name)[1] == "muon":
            matrices = to_matrices(leaf, find_rule(MATRIX_AXES, name)[1])
            yield name, np.asarray(matrices).reshape(-1, *matrices.shape[-2:])


def spectra(size: int) -> dict[str, np.ndarray]:
    """Decay laws that gradients of trained networks show, largest value 1."""
    k = np.arange(size)
    return {
        "1/k": 1 / (1 + k),
        "1/k^2": 1 / (1 + k) ** 2.0,
        "1/sqrt(k)": (1 + k) ** -0.5,
        "two decades": 10 ** (-2 * k / size),
        "four decades": 10 ** (-4 * k / size),
    }


def with_spectrum(values: np.ndarray, cols: int, rng: np.random.Generator) -> np.ndarray:
    """A matrix of these singular values between two random orthogonal bases."""

    def basis(count: int, length: int) -> np.ndarray:
        # Rows of a cosine transform with random signs: orthogonal and dense, without a QR.
        grid = (np.arange(length) + 0.5) * rng.permutation(length)[:count, None]
        rows = np.cos(np.pi * grid / length) * np.sqrt(2 / length)
        rows[np.abs(grid).sum(1) == 0] /= np.sqrt(2)
        return (rows * rng.choice([-1.0, 1.0], length)).astype(np.float32)

    return (basis(len(values), len(values)).T * values.astype(np.float32)) @ basis(
        len(values), cols
    )


def largest(x: np.ndarray, name: str) -> tuple[float, float]:
    """Largest singular value after Newton-Schulz: (bfloat16, exact polynomial)."""
    coefficients = coefficients_of(name)
    x = x if x.shape[0] <= x.shape[1] else x.T
    run = jax.jit(lambda x: newton_schulz(x, coefficients, compute_dtype=jnp.bfloat16))
    got = _singular(np.asarray(run(jnp.asarray(x))))
    values = _singular(x)
    values = values / np.linalg.norm(values)
    for a, b, c in coefficients:
        values = a * values + b * values**3 + c * values**5
    return float(got.max()), float(values.max())


def _singular(x: np.ndarray) -> np.ndarray:
    """Singular values by the Gram matrix: exact enough at the large end."""
    gram = (x @ x.T).astype(np.float64)
    return np.sqrt(np.clip(np.linalg.eigvalsh(gram), 0, None))


def numerics() -> dict[str, Any]:
    """Relative errors of the largest singular value, by case."""
    rng = np.random.default_rng(0)
    cases = {}
    if FLAGS.steps:
        for path, stack in trained_momenta(FLAGS.steps):
            cases |= {f"momentum {path}[{i}]": x for i, x in enumerate(stack[:2])}
    errors: dict[str, float] = {}

    def measure(case: str, x: np.ndarray) -> None:
        for name in ("standard", "minimax"):
            got, want = largest(x, name)
            errors[f"{case} {name}"] = got / want - 1
            print(
                f"{case:<70} {name:<9} {got:.4f} of {want:.4f}: {got / want - 1:+.2%}", flush=True
            )

    for case, x in cases.items():
        measure(case, x)
    for shape in filter(None, FLAGS.shapes):
        rows, cols = (int(n) for n in shape.split("x"))
        for decay, values in spectra(rows).items():
            if not FLAGS.decays or decay in FLAGS.decays:
                measure(f"{shape} {decay}", with_spectrum(values, cols, rng))
    return {"errors": errors, "worst": max(errors.values(), key=abs)}


def main(_: list[str]) -> None:
    """Measures, prints, writes."""
    quiet()
    found = numerics() if FLAGS.numerics else timed()
    print(json.dumps(found if not FLAGS.numerics else {"worst": found["worst"]}, indent=2))
    if FLAGS.json:
        Path(FLAGS.json).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
