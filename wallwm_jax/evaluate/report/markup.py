"""Tags without a template language.

A page is a tree of `tag(...)` calls. Everything that is not `Markup` is escaped,
so a caption such as `push <b> & pull` can never become part of the page: what is
safe is a matter of type, not of remembering to escape.
"""

import html

VOID = frozenset({"br", "col", "hr", "img", "meta"})
"""HTML elements that never have an end tag."""


class Markup(str):
    """HTML that is finished: pasted as it is, never escaped again."""

    __slots__ = ()


def text(value: object) -> Markup:
    """Escapes any value for use between tags or inside a quoted attribute."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value), quote=True))


def join(children: list[object] | tuple[object, ...]) -> Markup:
    """Concatenates children, escaping plain text and leaving out None."""
    return Markup("".join(text(child) for child in children if child is not None))


def _attribute(name: str, value: object) -> str:
    """`class_` -> class, `stroke_width` -> stroke-width; None and False drop out."""
    if value is None or value is False:
        return ""
    spelled = name.rstrip("_").replace("_", "-")
    return f" {spelled}" if value is True else f' {spelled}="{text(value)}"'


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """One element. `tag("p", "a < b", class_="note")` -> `<p class="note">a &lt; b</p>`.

    Raises:
      ValueError: children given to an element that cannot have any.
    """
    opening = f"<{name}{''.join(_attribute(k, v) for k, v in attributes.items())}>"
    if name in VOID:
        if children:
            raise ValueError(
                f"markup: <{name}> takes no children, got {len(children)}; use attributes"
            )
        return Markup(opening)
    return Markup(f"{opening}{join(children)}</{name}>")


def not_run(what: str, file: str) -> Markup:
    """The visible note that stands where an optional part of the run is missing."""
    return tag(
        "p",
        tag("strong", "Not run. "),
        f"{what} This part reads ",
        tag("code", file),
        ".",
        class_="not-run",
    )


def section(anchor: str, title: str, lead: object, *body: object) -> Markup:
    """A titled part of the page: heading, one plain paragraph, then figures."""
    return tag("section", tag("h2", title), tag("p", lead, class_="lead"), *body, id=anchor)


def fold(parts: list[Markup], shown: int) -> list[Markup]:
    """The first `shown` parts as they are, the others behind one line to open."""
    if len(parts) <= shown:
        return parts
    more = tag("summary", f"{len(parts) - shown} more")
    return [*parts[:shown], tag("details", more, *parts[shown:])]


def table(head: list[object], rows: list[list[object]], *, numeric: int = 1) -> Markup:
    """A table whose columns from index `numeric` on are right-aligned numbers."""

    def cells(kind: str, row: list[object]) -> list[Markup]:
        return [
            tag(kind, cell, class_="number" if i >= numeric else None) for i, cell in enumerate(row)
        ]

    body = [tag("tr", *cells("td", row)) for row in rows]
    inner = tag("table", tag("thead", tag("tr", *cells("th", head))), tag("tbody", *body))
    return tag("div", inner, class_="scroll")
