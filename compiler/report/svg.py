"""SVG as text: elements, and the marks that several plots share.

Colours are classes of `templates/style.css`. Every text goes through `escaped`, so that what these
functions return may stand in the page as it is.
"""

import html
from collections.abc import Iterable, Mapping

Attributes = Mapping[str, str | float]


def tag(name: str, attributes: Attributes, *inner: str) -> str:
    """One element; `inner` is markup already."""
    said = "".join(f' {key}="{_attribute(value)}"' for key, value in attributes.items())
    body = "".join(inner)
    return f"<{name}{said}>{body}</{name}>" if body else f"<{name}{said}/>"


def picture(width: float, height: float, *inner: str, title: str, description: str) -> str:
    """The whole drawing, as large as it is drawn: text in it never shrinks with the screen."""
    size = {"width": width, "height": height}
    box = f"0 0 {pixels(width)} {pixels(height)}"
    named = (tag("title", {}, escaped(title)), tag("desc", {}, escaped(description)))
    return tag("svg", {"role": "img", **size, "viewBox": box}, *named, *inner)


def label(x: float, y: float, said: str, kind: str = "") -> str:
    """Text at its baseline; `kind` is its class."""
    attributes: dict[str, str | float] = {"x": x, "y": y}
    if kind:
        attributes["class"] = kind
    return tag("text", attributes, escaped(said))


def line(kind: str, start: tuple[float, float], end: tuple[float, float]) -> str:
    """A straight line of a class."""
    path = f"M{pixels(start[0])} {pixels(start[1])}L{pixels(end[0])} {pixels(end[1])}"
    return tag("path", {"class": kind, "d": path})


def box(kind: str, corner: tuple[float, float], size: tuple[float, float], said: str = "") -> str:
    """A rectangle of a class; `said` is its tooltip."""
    attributes = {"x": corner[0], "y": corner[1], "width": size[0], "height": size[1]}
    inner = [tag("title", {}, escaped(said))] if said else []
    return tag("rect", {"class": kind, **attributes}, *inner)


def glyphs(kind: str, placed: Iterable[tuple[float, float, str]]) -> str:
    """Single characters of a class, each at its place: one element for all of them."""
    places = list(placed)
    if not places:
        return ""
    x = " ".join(pixels(place[0]) for place in places)
    y = " ".join(pixels(place[1]) for place in places)
    return tag("text", {"class": kind, "x": x, "y": y}, escaped("".join(one[2] for one in places)))


def shape(kind: str, path: str) -> str:
    """A path of a class; nothing where it has no points."""
    return tag("path", {"class": kind, "d": path}) if path else ""


def circle(x: float, y: float, radius: float) -> str:
    """A piece of a path."""
    r, d = pixels(radius), pixels(2 * radius)
    return f"M{pixels(x - radius)} {pixels(y)}a{r} {r} 0 1 0 {d} 0a{r} {r} 0 1 0 -{d} 0z"


def diamond(x: float, y: float, radius: float) -> str:
    """A piece of a path."""
    r = pixels(radius)
    return f"M{pixels(x)} {pixels(y - radius)}l{r} {r} -{r} {r} -{r} -{r}z"


def cross(x: float, y: float, radius: float) -> str:
    """A piece of a path, to be stroked."""
    d = pixels(2 * radius)
    left, right, top = pixels(x - radius), pixels(x + radius), pixels(y - radius)
    return f"M{left} {top}l{d} {d}M{right} {top}l-{d} {d}"


def escaped(said: str) -> str:
    """Text as markup."""
    return html.escape(said)


def pixels(value: float) -> str:
    """A tenth of a pixel is fine enough."""
    said = f"{value:.1f}".removesuffix(".0")
    return "0" if said == "-0" else said


def _attribute(value: str | float) -> str:
    return html.escape(value) if isinstance(value, str) else pixels(value)
