"""The report page: self-contained, well-formed, complete, and strict about its input."""

import html.parser
import json
import re
from pathlib import Path

import numpy as np
import pytest
from synthetic_run import HOSTILE, TASKS, make_run

from wallwm_jax.evaluate.report import write_report
from wallwm_jax.evaluate.report.markup import VOID
from wallwm_jax.evaluate.report.page import MAX_BYTES, render
from wallwm_jax.evaluate.report.run_folder import read_run

EXAMPLES = 6


class Checker(html.parser.HTMLParser):
    """Collects tags, attributes and text, and fails on unbalanced tags."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: list[tuple[str, dict]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def all(self, tag: str) -> list[dict]:
        """Attributes of every element of one kind."""
        return [attributes for name, attributes in self.seen if name == tag]


def parse(document: str) -> Checker:
    """Parses a page and checks that every element is closed."""
    checker = Checker()
    checker.feed(document)
    checker.close()
    assert checker.open == []
    return checker


def verdicts(document: str) -> list[str]:
    """The verdict of every bar in order: met, missed or open."""
    classes = [a.get("class", "").split() for a in parse(document).all("span")]
    return [kinds[1] for kinds in classes if kinds[:1] == ["verdict"]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One complete run folder; tests that damage it work on a copy."""
    return make_run(tmp_path_factory.mktemp("run") / "demo", examples=EXAMPLES)


@pytest.fixture(scope="module")
def document(run: Path) -> str:
    """The page of that run."""
    path = write_report(run)
    assert path == run / "report.html"
    assert path.stat().st_size < MAX_BYTES
    return path.read_text(encoding="utf-8")


@pytest.fixture()
def fresh(run: Path, tmp_path: Path) -> Path:
    """A run folder of links that a test may replace one by one."""
    for path in run.rglob("*"):
        target = tmp_path / "demo" / path.relative_to(run)
        if path.is_file() and path.name != "report.html":
            target.parent.mkdir(parents=True, exist_ok=True)
            target.hardlink_to(path)
    return tmp_path / "demo"


def replace(path: Path, content: str) -> None:
    """Writes a new file in place of the linked one."""
    path.unlink()
    path.write_text(content)


def test_page_is_balanced_and_needs_nothing_from_outside(document):
    page = parse(document)
    kinds = {tag for tag, _ in page.seen}
    assert not kinds & {"script", "link", "iframe", "object", "base", "form"}
    for tag, attributes in page.seen:
        for name in ("src", "href", "srcset", "data", "poster", "action", "background"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/jpeg;base64,", "#")), (
                tag,
                name,
                value,
            )
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(
        r"https?:|//[a-z]|url\(|@import", re.sub(r"base64,[A-Za-z0-9+/=]+", "", document)
    )
    anchors = {a["id"] for _, a in page.seen if "id" in a}
    assert {a["href"][1:] for a in page.all("a")} <= anchors


def test_every_figure_says_what_it_shows(document):
    page = parse(document)
    assert all(image.get("alt") for image in page.all("img"))
    for drawing in page.all("svg"):
        assert drawing.get("aria-hidden") == "true" or (
            drawing.get("role") == "img" and drawing.get("aria-label")
        )
    assert all(a.get("aria-label") for tag, a in page.seen if a.get("role") == "img")


def test_every_example_task_and_section_is_present(document, run):
    page = parse(document)
    words = "".join(page.text)
    for i, about in enumerate(json.loads((run / "eval" / "examples.json").read_text())):
        assert f"“{about['caption']}”" in words, i
    films = [a for a in page.all("img") if a["class"] == "film"]
    assert len(films) == 3 * EXAMPLES
    for view in ("ego", "side", "wrist"):
        assert sum(f"{view} view" in film["alt"] for film in films) == EXAMPLES
    charts = [a for a in page.all("svg") if a.get("class") == "chart"]
    assert len(charts) == 4 * EXAMPLES + 2
    for task in TASKS:
        assert task in words
    sections = {a["id"] for a in page.all("section")}
    assert sections == {"closed-loop", "imagined", "timelines", "training", "packing", "numbers"}


def test_bars_are_judged_from_the_summary(document):
    assert verdicts(document) == ["met"] * 10
    words = " ".join(parse(document).text)
    assert "70 %" in words  # 1 - 0.0912 / 0.301
    assert "16 min 53 s" in words  # the sum of the phases


def test_captions_come_out_as_text(document):
    assert "<script" not in document and "<b>" not in document
    page = parse(document)
    assert HOSTILE in "".join(page.text)
    titles = [a.get("title", "") for _, a in page.seen]
    assert any(HOSTILE in title for title in titles)


def test_both_colour_schemes_and_a_phone_are_styled(document):
    assert "prefers-color-scheme: dark" in document
    assert 'content="width=device-width, initial-scale=1"' in document


def test_timeline_tracks_are_in_order(document):
    labels = [a.get("aria-label", "") for _, a in parse(document).seen]
    tracks = [label.split()[0] for label in labels if " captions: " in label]
    assert tracks == ["task", "subtask", "action", "segment"] * 3


@pytest.mark.parametrize(
    "gone, note",
    [
        ("eval/examples.npz", "eval/examples.npz"),
        ("eval/timelines.json", "eval/timelines.json"),
        ("eval/packing.json", "eval/packing.json"),
        ("video/metrics.jsonl", "video/metrics.jsonl"),
        (f"eval/closed_loop_{TASKS[0]}.npz", f"eval/closed_loop_{TASKS[0]}.npz"),
    ],
)
def test_a_missing_part_is_noted(fresh, gone, note):
    (fresh / gone).unlink()
    words = "".join(parse(write_report(fresh).read_text()).text)
    assert "Not run. " in words and note in words


def test_a_summary_alone_makes_a_page(tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    words = "".join(parse(write_report(tmp_path).read_text()).text)
    assert words.count("Not run. ") == 6
    assert "nan" not in words.lower()


def test_a_number_that_was_not_measured_is_never_met(tmp_path):
    (tmp_path / "summary.json").write_text('{"action": {"mae": NaN}, "packing_efficiency": null}')
    document = write_report(tmp_path).read_text()
    assert verdicts(document) == ["open"] * 10
    assert "0 of 0" in "".join(parse(document).text)


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("summary.json", "{", "not valid JSON"),
        ("summary.json", "[]", "expected a JSON dict, got list"),
        ("summary.json", '{"video": 3}', "'video' is not an object"),
        ("video/metrics.jsonl", '{"step": 1, "loss": 0.1}\n{"step": 2', "line 2"),
        ("eval/packing.json", "{}", "no 'example'"),
        ("eval/examples.json", "[]", f"0 records for {EXAMPLES} examples"),
        ("eval/examples.npz", "PK not a zip", "cannot be read"),
        ("eval/closed_loop.json", '{"reach": {"episodes": [{}]}}', "reach episode 0 has no 'seed'"),
        (
            "eval/timelines.json",
            '[{"task": "a", "steps": 4, "tracks": {"task": [[0, 9, "x"]]}}]',
            "leaves its 4 steps",
        ),
    ],
)
def test_a_malformed_part_is_one_clear_line(fresh, name, content, says):
    replace(fresh / name, content)
    with pytest.raises(ValueError) as error:
        write_report(fresh)
    line = str(error.value)
    assert says in line and name in line and "\n" not in line
    assert not (fresh / "report.html").exists()


@pytest.mark.parametrize(
    "change, says",
    [
        ({"imagined": np.zeros((EXAMPLES, 3, 17, 8, 8, 3), np.uint8)}, "imagined has shape"),
        ({"frames": np.full(EXAMPLES, 99)}, "frames lies in 99..99, expected 1..17"),
        ({"steps": np.zeros(EXAMPLES)}, "steps is float64"),
        ({"expert": None}, "has no array expert"),
        ({"expert": np.array([{}] * EXAMPLES)}, "cannot be read"),
    ],
)
def test_arrays_that_disagree_are_refused(fresh, change, says):
    path = fresh / "eval" / "examples.npz"
    with np.load(path) as archive:
        arrays = {**archive, **change}
    path.unlink()
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(ValueError, match=re.escape(says)):
        write_report(fresh)


def test_a_strip_of_an_unknown_event_is_refused(fresh):
    path = fresh / "eval" / f"closed_loop_{TASKS[0]}.npz"
    path.unlink()
    np.savez(path, frames=np.zeros((2, 8, 8, 3), np.uint8), event=[0, 4], step=[0, 1])
    with pytest.raises(ValueError, match="event index 4 but the filmed episode has 4 events"):
        write_report(fresh)


def test_no_run_folder_says_what_to_give(tmp_path):
    with pytest.raises(FileNotFoundError, match="summary.json does not exist; give a finished run"):
        write_report(tmp_path / "nowhere")


def test_an_unwritable_folder_is_one_line(fresh):
    (fresh / "report.html").mkdir()  # a rename onto a folder fails, for root too
    with pytest.raises(OSError, match="cannot write .*report.html"):
        write_report(fresh)
    assert not list(fresh.glob(".report*"))


def test_a_heavy_page_loses_detail_but_no_example(run):
    read = read_run(run)
    full = render(read)
    light = render(read, limit=len(full) // 2)
    assert len(light) <= len(full) // 2
    for words in (full, light):
        assert sum(a["class"] == "film" for a in parse(words).all("img")) == 3 * EXAMPLES
    with pytest.raises(ValueError, match="write fewer examples or smaller frames"):
        render(read, limit=1000)


def test_writing_twice_gives_the_same_bytes(run):
    assert write_report(run).read_bytes() == write_report(run).read_bytes()
