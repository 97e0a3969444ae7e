"""Compiles a config's programs for a TPU topology; no TPU, dataset or weights are needed.

    python -m experiments.aot --config=configs/wan22_ti2v_5b.py --topology=v5p:4x4x4 --what=video \\
        --sequences_per_chip=4 --json=aot.json
    python -m experiments.aot --config=configs/wan22_ti2v_5b.py --topology=v6e:16x16 --what=action --plan

A stage's name compiles its whole training step, the very function and state of
a run: loss, gradients, optimizer, average. Says what each chip needs, whether
it has it, which attention runs where, what is communicated against the least
that ZeRO-3 must, and how XLA's FLOPs of one layer compare with ours. --plan
says the memory without compiling. What does not fit, or cannot be compiled
for, ends in one line and exit status 1.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from absl import flags, logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments import aot_programs as programs
from experiments.aot_optimizer import measure_optimizer
from experiments.common import run
from wallwm_jax.parallel import aot, planner
from wallwm_jax.parallel.compiler_options import options_for
from wallwm_jax.parallel.mesh import batch_shards, make_mesh
from wallwm_jax.train.stages import STAGES

TOPOLOGY = flags.DEFINE_string("topology", "v5p:4x4x4", "TPU topology to compile for")
WHAT = flags.DEFINE_enum(
    "what",
    "forward",
    [*programs.FORWARDS, *STAGES],
    "forward: the multi-view tower; wan: Wan alone, the views side by side in one picture; a stage: "
    "its training step",
)
SEQUENCES = flags.DEFINE_integer(
    "sequences_per_chip", 0, "packed sequences on every chip; 0: config.pack.sequences over all", 0
)
OPTIMIZER = flags.DEFINE_string(
    "optimizer", "", "muon, adamw, or with --only=optimizer optax_muon; empty: the stage's, or muon"
)
ONLY = flags.DEFINE_enum("only", "", ["", "optimizer"], "compile this part of the step by itself")
PLAN = flags.DEFINE_bool("plan", False, "only plan the memory of a stage; nothing is compiled")
JSON = flags.DEFINE_string("json", "", "file that gets the figures")
QUICK = flags.DEFINE_bool(
    "quick", False, "compile with little optimisation: seconds, but not the real memory plan"
)


def sequences_of(config: ConfigDict, mesh: Mesh, per_chip: int = 0) -> int:
    """Sequences of a global batch.

    Raises:
      AotError: they do not divide over the mesh.
    """
    parts = batch_shards(mesh)
    sequences = per_chip * mesh.size or config.pack.sequences or mesh.size
    if sequences % parts:
        raise aot.AotError(
            f"config.pack.sequences = {sequences} does not divide over data x fsdp = {parts}; choose a multiple"
        )
    return sequences


def measure(
    config: ConfigDict, topology: str, what: str, *, per_chip: int = 0, quick: bool = False
) -> dict[str, Any]:
    """Compiles the whole program, and one layer of it with plain attention.

    Args:
      config: the experiment.
      topology: e.g. "v5p:4x4x4".
      what: one of `aot_programs.FORWARDS`, or a stage.
      per_chip: sequences; 0 leaves them to the config.
      quick: see `aot.compile_program`.

    Returns:
      The figures, JSON values, per chip and run; the FLOPs of one layer are those
      of one sequence per chip (or group of chips that share one).

    Raises:
      AotError: libtpu is missing or does not know the topology, the sequences
        do not divide over the mesh, or the program does not fit a chip.
    """
    sizes = programs.video_config(config)
    mesh = make_mesh(config.mesh.to_dict(), aot.topology_devices(topology))
    sequences = sequences_of(config, mesh, per_chip)
    # One layer's FLOPs grow with the sequences; the fewest are the least to compile.
    fewest, options = batch_shards(mesh), None
    if what in programs.FORWARDS:
        one = dataclasses.replace(
            sizes, wan=dataclasses.replace(sizes.wan, layers=1, attention="xla")
        )
        program, _ = programs.forward_program(config, sizes, what, sequences, mesh)
        layer_program, counted = programs.forward_program(config, one, what, fewest, mesh)
        more = {}
    else:
        options = options_for(mesh.devices.flat[0].device_kind)
        program = programs.train_program(config, what, sequences, mesh)
        layer_program, counted, block = programs.layer_program(config, what, fewest, mesh)
        more = {
            "least_collective_bytes": planner.least_traffic(
                *programs.traffic(config, what, program, mesh)
            )
        }
        more["plan"] = programs.plan(config, what, program, mesh).to_json()
    logging.set_verbosity(logging.INFO)  # which attention was picked, as it is
    whole = aot.compile_program(program, mesh, quick=quick, options=options)
    logging.set_verbosity(logging.WARNING)
    layer = aot.compile_program(layer_program, mesh, quick=True)  # only its FLOPs are read
    if what in STAGES and "video" in STAGES[what].trains:
        more["remat_multiplier"] = (layer.flops * mesh.size - counted + block[1]) / block[0]
    return more | {
        "topology": topology,
        "what": what,
        "quick": quick,
        "remat": config.video.remat,
        "sequences": sequences,
        "chips": whole.chips,
        "hbm_bytes_per_chip": whole.hbm,
        "hbm_limit_bytes": whole.hbm_limit,
        "arguments_bytes": whole.arguments,
        "temporaries_bytes": whole.temporaries,
        "outputs_bytes": whole.outputs,
        "flops_per_layer": layer.flops,
        "flops_per_layer_analytic": counted / whole.chips,
        "collective_bytes": whole.collectives,
        "asynchronous_share": whole.asynchronous,
        "compiler_options": dict(options or {}),
        "kernels": whole.kernels,
        "compile_seconds": round(whole.compile_seconds, 1),
        "fits": whole.fits,
    }


def planned(config: ConfigDict, topology: str, what: str, *, per_chip: int = 0) -> planner.Plan:
    """The memory of a stage's step; nothing is compiled.

    Raises:
      AotError: as `measure`; or `what` is no stage.
    """
    if what not in STAGES:
        raise aot.AotError(f"--plan is of a training step; give --what= one of {', '.join(STAGES)}")
    mesh = make_mesh(config.mesh.to_dict(), aot.topology_devices(topology))
    sequences = sequences_of(config, mesh, per_chip)
    program = programs.train_program(config, what, sequences, mesh)
    return programs.plan(config, what, program, mesh)


def table(figures: dict[str, Any]) -> str:
    """The figures for a person."""
    gb = lambda n: "unknown" if n is None else f"{n / 1e9:.2f} GB"  # noqa: E731
    named = lambda counts, show: ", ".join(f"{k} {show(n)}" for k, n in counts.items()) or "none"  # noqa: E731
    flops, analytic = figures["flops_per_layer"], figures["flops_per_layer_analytic"]
    rows = {
        "program": f"{figures['what']}, {figures['sequences']} sequences on {figures['chips']} chips of {figures['topology']}",
        "memory per chip": f"{gb(figures['hbm_bytes_per_chip'])} of {gb(figures['hbm_limit_bytes'])}",
        "  arguments": gb(figures["arguments_bytes"]),
        "  temporaries": gb(figures["temporaries_bytes"]),
        "  outputs": gb(figures["outputs_bytes"]),
        "attention kernels": named(figures["kernels"], lambda n: f"x{n}"),
        "collectives": named(figures["collective_bytes"], gb),
        "FLOPs of one layer": f"{flops / 1e12:.4f} T by XLA, {analytic / 1e12:.4f} T by hand, {flops / analytic - 1:+.2%}",
        "compiled in": f"{figures['compile_seconds']} s",
    }
    if "plan" in figures:
        total = sum(figures["collective_bytes"].values())
        least = figures["least_collective_bytes"]
        rows |= {
            "  planned": gb(figures["plan"]["peak_bytes"]),
            "collectives at least": f"{named(least, gb)}: {total / max(sum(least.values()), 1):.3f} x that",
            "asynchronous": f"{figures['asynchronous_share']:.1%} of the bytes",
        }
    if "remat_multiplier" in figures:
        forwards = 3 * figures["remat_multiplier"]
        rows["video layer's step"] = f"{forwards:.3f} forwards with remat {figures['remat']!r}"
    return "\n".join(f"{name:<20} {value}" for name, value in rows.items())


def write(figures: dict[str, Any]) -> None:
    """The figures into the file that --json names, if any."""
    if JSON.value:
        Path(JSON.value).write_text(json.dumps(figures, indent=2) + "\n")


def main(config: ConfigDict) -> None:
    """Compiles, prints, writes."""
    what, chosen = WHAT.value, dict(per_chip=SEQUENCES.value)
    if ONLY.value:
        figures = measure_optimizer(
            config, TOPOLOGY.value, OPTIMIZER.value or "muon", quick=QUICK.value
        )
        print("\n".join(f"{name:<32} {value}" for name, value in figures.items()))
        write(figures)
        return
    if OPTIMIZER.value and what in STAGES:
        config.stages[what].optimizer = OPTIMIZER.value
    if PLAN.value:
        plan = planned(config, TOPOLOGY.value, what, **chosen)
        print(plan.table())
        figures = plan.to_json()
        needs = plan.peak
    else:
        figures = measure(config, TOPOLOGY.value, what, quick=QUICK.value, **chosen)
        print(table(figures))
        needs = figures["hbm_bytes_per_chip"]
    write(figures)
    if not figures["fits"]:
        limit = figures.get("hbm_limit_bytes") or figures["limit_bytes"]
        raise aot.AotError(
            f"the program needs {needs} bytes per chip but a chip of {TOPOLOGY.value} has "
            f"{limit}; use more chips or fewer sequences"
        )


if __name__ == "__main__":
    aot.prepare_process()
    run(main)
