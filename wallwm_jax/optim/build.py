"""Parameter rules + one schedule -> the optimizer of a run.

The chain, in this order because each link must see what the one before leaves:

    zero the frozen gradients          they must not count in the global norm
    -> clip by global norm             over everything that trains
    -> per label:  muon    Muon -> decoupled decay -> -learning rate
                   adamw   Adam -> decoupled decay -> -learning rate
                   frozen  zero, and no state at all

Everything that depends on the parameter (label, matrix axes, decay) is a list
of `(regex, value)` over its path; see `rules`.
"""

from typing import Any, Literal

import jax
import optax
from jax.sharding import Mesh
from jax.typing import DTypeLike

from wallwm_jax.optim.matrices import LAST_TWO, MatrixAxes
from wallwm_jax.optim.muon import Specs, scale_by_muon
from wallwm_jax.optim.newton_schulz import coefficients_of
from wallwm_jax.optim.rules import Rules, match_rules
from wallwm_jax.optim.symmetric import ProductChoice

LABELS = ("muon", "adamw", "frozen")

DECAY_KERNELS: Rules[bool] = (
    (r"(.*/)?(kernel|w|weight)", True),
    (r".*", False),
)
"""Decay the kernels only. Biases, norm scales, learned tables and modulation
vectors have no redundant scale for decay to control, so shrinking them is a bias."""


def _labeller(labels: Rules[str], algorithm: str) -> Any:
    """Parameters -> tree of labels; with algorithm "adamw", Muon's leaves move to AdamW."""
    for pattern, label in labels:
        if label not in LABELS:
            raise ValueError(
                f"optimizer label {label!r} of rule {pattern!r}: unknown; use one of {LABELS}"
            )
    if algorithm == "adamw":
        labels = [(p, "adamw" if label == "muon" else label) for p, label in labels]
    return lambda tree: match_rules(labels, tree, what="optimizer labels")


def make_optimizer(
    labels: Rules[str],
    *,
    schedule: optax.Schedule,
    learning_rate: float,
    adamw_learning_rate: float | None = None,
    algorithm: Literal["muon", "adamw"] = "muon",
    matrix_axes: Rules[MatrixAxes] = LAST_TWO,
    weight_decay: float = 0.0,
    decay: Rules[bool] = DECAY_KERNELS,
    clip_norm: float | int | None = 1.0,
    muon_beta: float = 0.95,
    muon_nesterov: bool = True,
    muon_rms: float = 0.2,
    muon_coefficients: str = "standard",
    muon_compute_dtype: DTypeLike | None = None,
    muon_momentum_dtype: DTypeLike | None = None,
    muon_product: ProductChoice = "auto",
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    mesh: Mesh | None = None,
    specs: Specs | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Muon for matrices, AdamW for the rest, nothing for what is frozen.

    Args:
      labels: `(regex, "muon" | "adamw" | "frozen")`, first match wins, full
        coverage required.
      schedule: count -> factor with peak 1 (see `schedules`), for both groups.
      learning_rate: peak of the Muon group.
      adamw_learning_rate: peak of the AdamW group; None means the same.
      algorithm: "adamw" gives every trained leaf to AdamW under the same
        labels, to compare recipes.
      matrix_axes: `(regex, MatrixAxes)`; must cover the Muon leaves. The default
        suits [in, out] and [layers, in, out]; kernels with head axes need a rule.
      weight_decay: decoupled, times the group's current learning rate.
      decay: `(regex, bool)`: which parameters decay.
      clip_norm: limit of the global gradient norm of all trained leaves; None
        never clips. Muon ignores the scale of a single gradient, but not the
        ratio between the ones its momentum adds up.
      muon_*: see `scale_by_muon`; coefficients by name ("standard", "minimax").
      b1, b2, eps: AdamW.
      mesh: the run's mesh: Muon deals the matrices over its devices.
      specs: where the parameters lie on it, see `scale_by_muon`; a tree may
        have more leaves than Muon gets.

    Returns:
      An optax transformation. Its state mirrors the trained parameters leaf by
      leaf, so shardings carry over with `optax.tree_utils.tree_map_params`.

    Raises:
      ValueError: unknown label or coefficients; on init, uncovered paths.
    """
    label_of = _labeller(labels, algorithm)

    def finish(direction: optax.GradientTransformation, peak: float):
        return optax.chain(
            direction,
            optax.add_decayed_weights(
                weight_decay, mask=lambda tree: match_rules(decay, tree, what="weight decay")
            ),
            optax.scale_by_learning_rate(lambda count: peak * schedule(count)),
        )

    muon = scale_by_muon(
        matrix_axes,
        beta=muon_beta,
        nesterov=muon_nesterov,
        rms=muon_rms,
        coefficients=coefficients_of(muon_coefficients),
        compute_dtype=muon_compute_dtype,
        momentum_dtype=muon_momentum_dtype,
        product=muon_product,
        mesh=mesh,
        specs=specs,
    )
    adam = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)
    adamw_peak = learning_rate if adamw_learning_rate is None else adamw_learning_rate
    groups = {
        "muon": finish(muon, learning_rate),
        "adamw": finish(adam, adamw_peak),
        "frozen": optax.set_to_zero(),
    }
    return optax.chain(
        optax.masked(optax.set_to_zero(), lambda tree: _equals(label_of(tree), "frozen")),
        optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm),
        optax.partition(groups, label_of),
    )


def _equals(labels: Any, wanted: str) -> Any:
    """Tree of labels -> tree of bools, as `optax.masked` wants it."""
    return jax.tree.map(lambda label: label == wanted, labels)
