"""Programs compiled for a TPU topology on a machine that has no TPU.

libtpu compiles for any topology it knows, Pallas kernels included, and says
what the program will need of each chip. Nothing runs and nothing is allocated:
arguments are shapes with shardings.

What the figures mean: memory is the compiler's own plan. FLOPs count a loop's
body once and kernels not at all, so they are read off programs of one layer
with plain attention. Collectives are counted in the program text. The
compiler's estimate of the run time is not used: it ignores loops and
communication.
"""

import dataclasses
import importlib.util
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from wallwm_jax.errors import UserError
from wallwm_jax.parallel import compiler_options
from wallwm_jax.parallel.collectives import (
    asynchronous_share,
    collective_bytes,
    collectives_of,
)
from wallwm_jax.parallel.mesh import activate

__all__ = ["AotError", "Figures", "Program", "collective_bytes", "compile_program"]

ENVIRONMENT = {
    # Without these libtpu asks the metadata server of a cloud machine where it is.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    # Other processes may be compiling too.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""What libtpu must find in the environment when it is loaded."""

GIB = 1 << 30

HBM_BYTES = {
    "TPU v4": int(15.25 * GIB),
    "TPU v5 lite": int(15.75 * GIB),
    "TPU v5": int(95.74 * GIB),
    "TPU v6 lite": int(31.25 * GIB),
    "TPU7x": int(94.75 * GIB),
}
"""Memory a program may use on each device, as libtpu 0.0.42 gives it when it refuses one."""

LEAST_EFFORT = 9
"""XLA's optimisation level O0."""

_KERNEL = re.compile(r'%([\w\-]+?)[.\d]* = .*custom_call_target="tpu_custom_call"')


class AotError(UserError):
    """A topology that cannot be compiled for, or a program that does not fit it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A function and the shapes it is compiled for.

    Attributes:
      function: pure; a forward now, a training step takes its state the same way.
      arguments: trees of `jax.ShapeDtypeStruct` with shardings.
      donated: positions of arguments whose memory the results may take.
      results: shardings of the results, a prefix of their tree; None leaves
        them to the compiler.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    donated: tuple[int, ...] = ()
    results: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
    """What a compiled program needs of every chip.

    Attributes:
      arguments, temporaries, outputs, code: bytes; outputs in donated memory
        are counted with the arguments.
      hbm_limit: bytes a chip has for them; None for a chip we do not know.
      flops: loop bodies once, kernels not at all (see the head of this file).
      collectives: kind -> bytes, see `collectives`.
      asynchronous: share of those bytes that travel while the chip computes.
      kernels: name -> calls in the program text.
      compile_seconds: lowering and compiling.
    """

    chips: int
    arguments: int
    temporaries: int
    outputs: int
    code: int
    hbm_limit: int | None
    flops: float
    collectives: dict[str, int]
    asynchronous: float
    kernels: dict[str, int]
    compile_seconds: float

    @property
    def hbm(self) -> int:
        """Bytes per chip, all together."""
        return self.arguments + self.temporaries + self.outputs + self.code

    @property
    def fits(self) -> bool:
        """Whether a chip has that much."""
        return self.hbm_limit is None or self.hbm <= self.hbm_limit


def prepare_process() -> None:
    """Makes this process one that only compiles; call it before JAX looks for devices."""
    os.environ.update(ENVIRONMENT)
    jax.config.update("jax_platforms", "cpu")
    # JAX would store a program for absent devices and then fail to read it back.
    jax.config.update("jax_enable_compilation_cache", False)


def topology_devices(name: str) -> list[jax.Device]:
    """The devices of a TPU topology such as "v5p:4x4x4"; none of them need exist.

    Raises:
      AotError: libtpu is not installed, or does not know the topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise AotError(
            "libtpu is not installed, which compiles for TPU: pip install 'jax[tpu]' in this environment"
        )
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except jax.errors.JaxRuntimeError as error:
        raise AotError(
            f"topology {name!r} is not one that libtpu knows; write it like v5p:4x4x4, v6e:16x16 or "
            f"v5e:4x8 ({_first_line(error)})"
        ) from error


def compile_program(
    program: Program,
    mesh: Mesh,
    *,
    quick: bool = False,
    options: Mapping[str, str] | None = None,
) -> Figures:
    """Compiles for the mesh's devices and reads off what the program needs.

    Args:
      program: what to compile.
      mesh: of devices that need not exist.
      quick: lets the compiler try less: a fifth of the time and the same
        FLOPs, but not the memory plan of the program that would run (on the 5B
        forward 0.4 GB of temporaries where the real one has 1.2).
      options: of the compiler, e.g. those that `compiler_options` has for the chip.

    Raises:
      AotError: it needs more memory than a chip has.
      CompilerOptionsError: the compiler does not know an option.
    """
    started = time.monotonic()
    try:
        with activate(mesh):
            jitted = jax.jit(
                program.function, donate_argnums=program.donated, out_shardings=program.results
            )
            chosen = dict(options or {}) | ({"optimization_level": LEAST_EFFORT} if quick else {})
            compiled = compiler_options.compiled(jitted.lower(*program.arguments), chosen)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise AotError(
            f"the program does not fit a {mesh.devices.flat[0].device_kind}: {_first_line(error)}; use "
            "more chips, a larger fsdp axis or fewer sequences per chip"
        ) from error
    seconds = time.monotonic() - started
    memory, text = compiled.memory_analysis(), compiled.as_text()
    found = collectives_of(text)
    return Figures(
        chips=mesh.size,
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        hbm_limit=HBM_BYTES.get(mesh.devices.flat[0].device_kind),
        flops=compiled.cost_analysis()["flops"],
        collectives=collective_bytes(text),
        asynchronous=asynchronous_share(found),
        kernels=dict(Counter(_KERNEL.findall(text))),
        compile_seconds=seconds,
    )


def _first_line(error: BaseException) -> str:
    """The part of a compiler's message that a person needs."""
    text = str(error).split("\n")[0].rstrip(".")
    return text if len(text) <= 300 else f"{text[:300]}..."
