"""Held-out events: imagined against real video, predicted against expert actions."""

import numpy as np

from wallwm_jax.evaluate.report.arrays import Examples
from wallwm_jax.evaluate.report.charts import Line, legend, limits, line_chart
from wallwm_jax.evaluate.report.images import Detail, picture, spread, tile
from wallwm_jax.evaluate.report.markup import Markup, fold, not_run, section, tag
from wallwm_jax.evaluate.report.run_folder import RunFolder
from wallwm_jax.evaluate.report.wording import figure

OPEN_EXAMPLES = 4
"""Examples shown at once; the rest fold away so that the page stays short."""

_AXES = (("x", "cm"), ("y", "cm"), ("z, up", "cm"), ("gripper, +1 closed", ""))
_ROLES = (("expert", "expert"), ("predicted", "model"), ("mean_caption", "baseline"))


def view_names(run: RunFolder, count: int) -> list[str]:
    """Names of the views: the dataset's own when it says so, else our three."""
    names = (run.manifest or {}).get("views")
    names = list(names) if isinstance(names, (list, tuple)) else ["ego", "side", "wrist"]
    return names[:count] + [f"view {i + 1}" for i in range(len(names), count)]


def _strip(examples: Examples, i: int, view: int, name: str, detail: Detail) -> Markup:
    """One view of one example: real frames above, imagined frames below."""
    valid = int(examples.frames[i])
    real, imagined = examples.real[i, view, :valid], examples.imagined[i, view, :valid]
    chosen = spread(valid, detail.columns)
    truth = real.astype(np.float32) / 255
    # Frame 0 is given, so it counts in neither error.
    error = np.square(imagined[1:] / np.float32(255) - truth[1:]).mean() if valid > 1 else np.nan
    copied = np.square(truth[:1] - truth[1:]).mean() if valid > 1 else np.nan
    about = examples.about[i]
    alt = (
        f"{about.get('task', '')}, {name} view, “{about.get('caption', '')}”: {len(chosen)} "
        "frames, real above, imagined below"
    )
    sheet = tile(np.stack([real[chosen], imagined[chosen]]))
    marks = [tag("span", int(c)) for c in chosen]
    caption = tag(
        "figcaption",
        tag("strong", name),
        f" · squared error per pixel {figure(float(error), 2)}, "
        f"repeating frame 0 {figure(float(copied), 2)}",
    )
    film = tag(
        "div",
        tag("div", tag("span", "real"), tag("span", "imagined"), class_="rows", aria_hidden="true"),
        tag(
            "div",
            picture(sheet, alt, detail.quality, "film"),
            tag("div", *marks, class_="marks", aria_hidden="true"),
            class_="sheet",
            style=f"--frames:{len(chosen)}",
        ),
        class_="scroll strip",
    )
    return tag("figure", caption, film)


def _trajectories(examples: Examples, i: int) -> Markup:
    """Four small charts: three positions on one scale, and the gripper."""
    steps = int(examples.steps[i])
    x = np.arange(1, steps + 1, dtype=np.float32)

    def lines(axis: int) -> list[Line]:
        return [
            Line(role=role, x=x, y=getattr(examples, field)[i, :steps, axis])
            for field, role in reversed(_ROLES)  # the expert on top
        ]

    # One scale for the three positions: a flat axis must look flat.
    shared = limits([line for axis in range(3) for line in lines(axis)], log=False)
    grip = limits([Line(role="", x=x[:2], y=np.float32([-1, 1])), *lines(3)], log=False)
    caption = examples.about[i].get("caption", "")
    charts = []
    for axis, (name, unit) in enumerate(_AXES):
        alt = (
            f"{name} over {steps} control steps of “{caption}”: expert, model and same-caption mean"
        )
        charts.append(
            tag(
                "figure",
                line_chart(
                    lines(axis),
                    alt=alt,
                    unit=unit,
                    x_label="control step",
                    y_range=shared if axis < 3 else grip,
                ),
                tag("figcaption", name),
            )
        )
    return tag("div", *charts, class_="multiples")


def _card(run: RunFolder, i: int, detail: Detail) -> Markup:
    """Everything about one example."""
    examples = run.examples
    about = examples.about[i]
    names = view_names(run, examples.real.shape[1])
    strips = [_strip(examples, i, v, name, detail) for v, name in enumerate(names)]
    facts = f"{about.get('task', '')} · seed {about.get('seed', '')} · {about.get('label', '')}"
    facts += f" · {int(examples.steps[i])} control steps"
    return tag(
        "article",
        tag("h3", f"“{about.get('caption', '')}”"),
        tag("p", facts, class_="facts"),
        *strips,
        _trajectories(examples, i),
        class_="card",
    )


def examples_section(run: RunFolder, detail: Detail) -> Markup:
    """Real against imagined video and predicted against expert actions."""
    title = "What it imagines, and what it makes of it"
    if run.examples is None or not len(run.examples):
        return section(
            "imagined", title, not_run("No held-out events were imagined.", "eval/examples.npz")
        )
    lead = (
        "Events of held-out episodes. The model sees frame 0 of each view, its own state and the "
        "caption in the heading; it imagines the rest of the video, then reads it to make its "
        "actions. The curves are the target of the hand relative to where it starts; the three "
        "positions share one scale."
    )
    cards = [_card(run, i, detail) for i in range(len(run.examples))]
    key = legend(
        [("expert", "expert"), ("model", "model"), ("baseline", "mean of the same caption")]
    )
    return section("imagined", title, lead, key, *fold(cards, OPEN_EXAMPLES))
