"""Building blocks of one self-contained HTML page: tables, curves, pictures and videos inline.

`evals.sections` and `evals.report` use them. Every value that is not `Html` is escaped. The page
is designed for small screens and for screen readers: one heading per section, captions and scopes
in tables, a text alternative for every picture.
"""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from etils import epath
from PIL import Image

from data_pipelines.media.images import open_image

# Media types of videos that browsers play, by suffix.
_VIDEOS = {".mp4": "video/mp4", ".webm": "video/webm"}
# Larger pictures are reduced, to keep the page small enough for mail and phones.
_LARGEST_SIDE = 1600

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --paper: #fff; --line: #d0d4d9; --soft: #f4f5f7;
  --link: #0b57d0; --warn: #8a4b00 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ea; --paper: #16181b; --line: #3c4148;
  --soft: #21252a; --link: #8ab4f8; --warn: #f0b060 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.6rem; line-height: 1.2 } h2 { font-size: 1.3rem; margin-top: 2.5rem }
h3 { font-size: 1.05rem; margin-top: 1.75rem }
a { color: var(--link) } code { font-size: .9em }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1rem; padding: 0; list-style: none }
.scroll { overflow-x: auto; margin: .75rem 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal }
caption { text-align: left; padding-bottom: .35rem; font-weight: 600 }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right }
th[scope=row], thead th:first-child { text-align: left; font-weight: 500 }
thead th { background: var(--soft) }
figure { margin: 1rem 0 } figcaption { margin-top: .35rem; font-size: .9rem }
figure svg, figure video, figure img { display: block; max-width: 100%; height: auto }
figure svg { background: #fff; border-radius: .3rem }
.pixels { image-rendering: pixelated }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 0 1.5rem }
.note { color: var(--warn) }
"""


class Html(str):
    """Text that is already markup."""


def escape(value: Any) -> Html:
    """Any value as markup: numbers shortened, None as a dash, `Html` as it is."""
    if isinstance(value, Html):
        return value
    if value is None:
        return Html("–")  # noqa: RUF001  an en dash
    if isinstance(value, float):
        return Html(html.escape(f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"))
    if isinstance(value, int) and not isinstance(value, bool):
        return Html(f"{value:,}")
    return Html(html.escape(str(value)))


def element(name: str, *content: Any, **attributes: Any) -> Html:
    """`<name attribute="value">content</name>`; attributes may end in `_`, as `class_`."""
    spelled = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
    )
    return Html(f"<{name}{spelled}>{joined(content)}</{name}>")


def joined(parts: Iterable[Any]) -> Html:
    return Html("".join(escape(part) for part in parts))


def document(title: str, sections: Mapping[str, Html]) -> str:
    """The whole page.

    Args:
      title: its heading.
      sections: heading -> content, in order; a list of links to them comes first.
    """
    names = {heading: f"section-{number}" for number, heading in enumerate(sections, 1)}
    links = [
        element("li", element("a", heading, href=f"#{name}")) for heading, name in names.items()
    ]
    body = [
        element("h1", title),
        element("nav", element("ul", *links), aria_label="Sections"),
        element(
            "main",
            *(
                element(
                    "section",
                    element("h2", heading, id=names[heading]),
                    content,
                    aria_labelledby=names[heading],
                )
                for heading, content in sections.items()
            ),
        ),
    ]
    head = joined(
        [
            Html('<meta charset="utf-8">'),
            Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            Html('<link rel="icon" href="data:,">'),
            element("title", title),
            element("style", Html(_STYLE)),
        ]
    )
    page = element("html", element("head", head), element("body", *body), lang="en")
    return f"<!doctype html>\n{page}\n"


def table(caption: str, header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> Html:
    """A table whose first column names its rows; it scrolls horizontally on a narrow screen."""
    head = element("tr", *(element("th", name, scope="col") for name in header))
    lines = [
        element(
            "tr", element("th", first, scope="row"), *(element("td", value) for value in others)
        )
        for first, *others in rows
    ]
    content = element(
        "table", element("caption", caption), element("thead", head), element("tbody", *lines)
    )
    return element("div", content, class_="scroll", tabindex=0, role="region", aria_label=caption)


def value_and_error(value: float | None, error: float | None) -> Html:
    """A number with its standard error, if there is one."""
    return escape(value) if error is None else Html(f"{escape(value)} ± {escape(error)}")


def notes(warnings: Iterable[str]) -> Html:
    """A list of warnings on the numbers above."""
    items = [element("li", text) for text in warnings]
    return element("ul", *items, class_="note") if items else Html("")


def picture(source: epath.PathLike | Image.Image, text: str, caption: str = "") -> Html:
    """An image with a text alternative; reduced if it is very large.

    Raises ImageError for a file that is not an image.
    """
    if not isinstance(source, Image.Image):
        source = open_image(epath.Path(source).read_bytes())
    image = source.convert("RGB")
    small = max(image.size) <= 256
    image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    tag = _void(
        "img",
        src=_data("image/png", buffer.getvalue()),
        alt=text,
        width=image.width,
        height=image.height,
        class_="pixels" if small else "photo",
        loading="lazy",
    )
    return element("figure", tag, element("figcaption", caption) if caption else "")


def video(path: epath.PathLike, text: str, caption: str = "") -> Html:
    """A video that plays in the page, muted and looping. Raises ValueError for another suffix."""
    path = epath.Path(path)
    kind = _VIDEOS.get(path.suffix)
    if kind is None:
        raise ValueError(f"{path} is not a video that browsers play; expected {', '.join(_VIDEOS)}")
    content = _data(kind, path.read_bytes())
    tag = Html(
        f'<video src="{content}" aria-label="{html.escape(text)}" controls muted loop autoplay '
        "playsinline></video>"
    )
    return element("figure", tag, element("figcaption", caption) if caption else "")


def link(path: PurePath | epath.Path, page: epath.PathLike, text: str = "") -> Html:
    """A link to a file, relative to the folder of the page if both are local."""
    href = str(path)
    if "://" not in href and "://" not in str(page):
        href = os.path.relpath(href, epath.Path(page).parent)
    return element("a", text or path.name, href=href)


def side_by_side(parts: Iterable[Html]) -> Html:
    """Figures in columns if the screen is wide enough."""
    return element("div", *parts, class_="side")


def _void(name: str, **attributes: Any) -> Html:
    return Html(str(element(name, **attributes)).removesuffix(f"</{name}>"))


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
