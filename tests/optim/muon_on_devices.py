"""Run on eight simulated devices by test_exchange.py: Muon on meshes against one device."""

import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from wallwm_jax.optim.matrices import MatrixAxes
from wallwm_jax.optim.muon import muon_plan, scale_by_muon
from wallwm_jax.optim.newton_schulz import STANDARD
from wallwm_jax.parallel.mesh import activate, make_mesh, optimizer_shardings

SHAPES = {
    "query": (3, 16, 4, 4),  # whole; cut by heads: columns
    "heads": (3, 16, 4, 8),  # per head: cut apart
    "out": (3, 4, 4, 16),
    "up": (2, 16, 48),
    "down": (2, 48, 16),
    "fused": (1, 16, 3 * 16),
    "odd": (2, 18, 7),  # 18 does not divide over fsdp = 4 or 8
    "square": (3, 16, 16),
}
SPECS = {
    "query": P(None, "fsdp", "tensor", None),
    "heads": P(None, "fsdp", "tensor", None),
    "out": P(None, "tensor", None, "fsdp"),
    "up": P(None, "fsdp", "tensor"),
    "down": P(None, ("tensor",), ("fsdp",)),
    "fused": P(None, "fsdp", None),
    "odd": P(None, "fsdp"),
    "square": P(None, None, "fsdp"),
}
RULES = (
    ("query", MatrixAxes(rows=(-3,), cols=(-2, -1))),
    ("heads", MatrixAxes(rows=(-3,), cols=(-1,))),
    ("out", MatrixAxes(rows=(-3, -2), cols=(-1,))),
    ("fused", MatrixAxes(parts=((-1, 3),))),
    (".*", MatrixAxes()),
)
MESHES = {
    "fsdp": dict(fsdp=8),
    "all": dict(data=2, fsdp=2, tensor=2),
    "replicas": dict(data=2, fsdp=4),
}


FEW = STANDARD[:2]
"""Two steps compile in half the time; what is sent does not depend on their number."""

COLLECTIVE = re.compile(
    r" (all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute|collective-broadcast)"
    r"(?:-start)?\("
)


def draw(seed: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in SHAPES.items()}


def muon(dtype: str | None, **where):
    return scale_by_muon(RULES, compute_dtype=dtype, coefficients=FEW, **where)


def steps(tx, place, where=None, count=2):
    """Updates and momentum after a few steps, and the text of the compiled program."""
    state = jax.jit(tx.init, out_shardings=where)(place(draw(0)))
    compiled = jax.jit(tx.update).lower(place(draw(1)), state).compile()
    for seed in range(1, count + 1):
        updates, state = compiled(place(draw(seed)), state)
    return updates, state, compiled.as_text()


def compare(name: str, wanted: dict, dtype: str | None) -> dict:
    """Muon on one mesh against `wanted`, as JSON."""
    mesh = make_mesh(MESHES[name])
    shardings = {
        k: NamedSharding(mesh, divisible(SHAPES[k], spec, mesh)) for k, spec in SPECS.items()
    }
    tx = muon(dtype, mesh=mesh, specs=SPECS)
    with activate(mesh):
        where = optimizer_shardings(tx, draw(0), shardings, mesh)
        updates, state, hlo = steps(tx, lambda tree: jax.device_put(tree, shardings), where)
    plan, _ = muon_plan(draw(0), RULES, mesh=mesh, specs=SPECS, coefficients=FEW)
    return {
        "error": {k: float(abs(np.asarray(updates[k]) - wanted[k]).max()) for k in SHAPES},
        "size": {k: float(abs(wanted[k]).max()) for k in SHAPES},
        "kept": all(
            x[k].sharding.is_equivalent_to(shardings[k], x[k].ndim)
            for x in (updates, state.mu)
            for k in SHAPES
        ),
        "collectives": COLLECTIVE.findall(hlo[hlo.index("\nENTRY ") :]),
        "elsewhere": COLLECTIVE.findall(hlo[: hlo.index("\nENTRY ")]),
        "exchanges": sum(bool(s.rows + s.cols) for s in plan.stacks),
        "replicated": sum(
            len(s.members) + 1 for s in plan.stacks if any(mesh.shape[n] > 1 for n in s.replicas)
        ),
        "roles": len(plan.roles),
    }


def divisible(shape: tuple[int, ...], spec: P, mesh: jax.sharding.Mesh) -> P:
    """JAX places no array whose axis does not divide."""
    names = lambda e: e if isinstance(e, tuple) else (e,) if e else ()
    parts = [int(np.prod([mesh.shape[n] for n in names(e)])) for e in spec]
    return P(*(e if size % n == 0 else None for e, size, n in zip(spec, shape, parts)))


if __name__ == "__main__":
    report = {}
    for dtype in (None, "bfloat16"):
        alone = steps(muon(dtype), lambda tree: tree)[0]
        wanted = {k: np.asarray(x) for k, x in alone.items()}
        for name in MESHES if dtype is None else ("all",):
            report[f"{name} {dtype or 'float32'}"] = compare(name, wanted, dtype)
    json.dump(report, sys.stdout)
