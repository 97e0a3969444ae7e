"""Loss curves of the training stages."""

import numpy as np
from jaxtyping import Float

from wallwm_jax.evaluate.report.charts import Line, legend, line_chart
from wallwm_jax.evaluate.report.markup import Markup, not_run, section, tag
from wallwm_jax.evaluate.report.run_folder import RunFolder
from wallwm_jax.evaluate.report.wording import figure, plural

LOG_FROM = 6.0
"""A loss that falls by more than this factor is drawn on a logarithmic scale."""


def smooth(values: Float[np.ndarray, "n"], span: int) -> Float[np.ndarray, "n"]:
    """Centred moving mean over up to `span` values, shorter at both ends.

    Centred and bias-free at the ends, unlike a running average, so that the last
    point of the curve is not held up by the first ones.
    """
    half = span // 2
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def _curve(stage: str, records: list[dict]) -> Markup:
    """One stage's loss, every record faint and its moving mean strong."""
    step = np.array([r["step"] for r in records], dtype=np.float64)
    loss = np.array([r["loss"] for r in records], dtype=np.float64)
    keep = np.isfinite(loss)
    step, loss = step[keep], loss[keep]
    lost = len(records) - len(loss)
    if not len(loss):
        return not_run(f"No finite loss in the {stage} stage.", f"{stage}/metrics.jsonl")
    mean = smooth(loss, max(1, len(loss) // 25))
    log = bool(mean.min() > 0 and mean.max() > LOG_FROM * mean.min())
    first, last = figure(float(mean[0])), figure(float(mean[-1]))
    alt = f"Loss of the {stage} stage over {len(loss)} records, from {first} to {last}"
    chart = line_chart(
        [Line(role="raw", x=step, y=loss), Line(role="model", x=step, y=mean)],
        alt=alt,
        unit="loss, log scale" if log else "loss",
        x_label="optimizer step",
        size=(520, 230),
        log=log,
    )
    words = f" {first} to {last} in {int(step[-1]):,} steps"
    words += f"; {plural(lost, 'record')} not finite" if lost else ""
    return tag("figure", chart, tag("figcaption", tag("strong", f"{stage} stage"), words))


def training_section(run: RunFolder) -> Markup:
    """Loss curves of the video and the action stage."""
    title = "How it learned"
    lead = (
        "First the video tower learns to imagine events; then it is frozen and the action tower "
        "learns to read it. Faint: the logged loss. Strong: its moving mean."
    )
    curves = [
        _curve(stage, records)
        if records
        else not_run(f"The {stage} stage was not trained.", f"{stage}/metrics.jsonl")
        for stage, records in run.metrics.items()
    ]
    key = legend([("raw", "logged loss"), ("model", "moving mean")])
    return section("training", title, lead, key, tag("div", *curves, class_="pair"))
