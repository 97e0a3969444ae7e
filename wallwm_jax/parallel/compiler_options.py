"""What a training step is compiled with on each kind of chip.

By default every collective of libtpu is synchronous: the chip waits while
weights are gathered and gradients scattered. These options make them travel
beside the products. One table serves what is compiled ahead of time and what
runs, so the first is a proof of the second. They are of libtpu 0.0.42, which
the pinned JAX brings; names come and go between its versions, and one that it
does not know is refused when the step is compiled, by name. A run then does
without them: --config.async_collectives=False.

An option that LIBTPU_INIT_ARGS sets is left out: the environment's word holds.
"""

import os
import re
from collections.abc import Mapping

import jax

from wallwm_jax.errors import UserError

_SPARSECORE = {
    # Gathers may begin before they are needed ...
    "xla_enable_async_all_gather": "true",
    # ... and run on a SparseCore while the TensorCore computes; along an axis of
    # the mesh that is one of the torus, and along one that lies over two.
    "xla_tpu_enable_sparse_core_collective_offload_all_gather": "true",
    "xla_tpu_enable_sparse_core_collective_offload_2d_all_gather": "true",
    # The same for scatters, which are then no longer all-reduces of which a slice is kept.
    "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": "true",
}

COMPILER_OPTIONS: dict[str, dict[str, str]] = {
    kind: _SPARSECORE for kind in ("TPU v5", "TPU v5p", "TPU v6 lite", "TPU v6e")
}
"""Device kind -> option -> value, as `jax.jit` and `Lowered.compile` take them. v5p and v6e
have two names each; other TPUs have no SparseCore, or were not compiled for with these."""


class CompilerOptionsError(UserError):
    """The compiler does not know an option."""


def options_for(kind: str, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The options of a kind of device; none for one that COMPILER_OPTIONS does not list.

    Args:
      kind: as `device_kind` of a JAX device gives it.
      environment: defaults to that of the process.
    """
    environment = os.environ if environment is None else environment
    given = set(re.findall(r"--(\w+)", environment.get("LIBTPU_INIT_ARGS", "")))
    return {k: v for k, v in COMPILER_OPTIONS.get(kind, {}).items() if k not in given}


def compiled(lowered: jax.stages.Lowered, options: Mapping[str, str]) -> jax.stages.Compiled:
    """The program, compiled with these options.

    Raises:
      CompilerOptionsError: the compiler does not know one of them.
    """
    try:
        return lowered.compile(dict(options) or None)
    except jax.errors.JaxRuntimeError as error:
        if (unknown := re.search(r"No such compile option: '(\w+)'", str(error))) is None:
            raise
        raise CompilerOptionsError(
            f"this compiler has no option {unknown[1]}, which the libtpu of jax 0.10.2 has: "
            "install that one, or train with --config.async_collectives=False"
        ) from error
