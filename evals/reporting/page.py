"""Building blocks of one self-contained HTML page, rendered by the templates next to this module.

`evals.sections` fills these dataclasses, `render` turns them into text. Values are plain text: the
templates escape them. The page needs no script and no other file; pictures and videos are inside
it. It is designed for small and wide screens, both colour schemes, paper, and
screen readers: captions and scopes in tables, a text alternative for every picture.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import jinja2
from etils import epath
from PIL import Image

from data_pipelines.media.images import open_image

# Media types of videos that browsers play, by suffix.
_VIDEOS = {".mp4": "video/mp4", ".webm": "video/webm"}
_PICTURES = {".png": "image/png", ".jpg": "image/jpeg"}
_LARGEST_SIDE = 1600  # pixels; larger pictures are reduced, to keep the page small enough for mail
_SMALL, _MEDIUM = 32, 96  # pixels; classes of sizes in which tiles are shown


class Block(Protocol):
    """Content of a figure. `template` is the file that renders it, with the block as `block`."""

    template: ClassVar[str]


@dataclasses.dataclass(frozen=True)
class Source:
    """Where figures come from.

    Attributes:
      name: of the evaluation or run.
      command: the command line that gives the figures again.
      settings: what the figures are of, by their printed names.
      file: path of the result, as text.
    """

    name: str
    command: str
    settings: Mapping[str, Any]
    file: str = ""


@dataclasses.dataclass(frozen=True)
class Figure:
    """Blocks with a caption, the warnings on them, and where they come from.

    Attributes:
      title: its caption.
      blocks: in order.
      sources: one for each evaluation or run that is shown.
      text: one or two sentences under the caption.
      warnings: sentences on how the figures may be used.
      missing: figures that were not computed, each with the reason.
    """

    title: str
    blocks: Sequence[Block]
    sources: Sequence[Source]
    text: str = ""
    warnings: Sequence[str] = ()
    missing: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading, which the navigation links to, and figures.

    Attributes:
      name: of the anchor.
      heading: text; a single figure's title is shown in its place.
      figures: in order.
      columns: whether the figures are next to each other if the screen is wide enough.
    """

    name: str
    heading: str
    figures: Sequence[Figure]
    columns: bool = False


@dataclasses.dataclass(frozen=True)
class Entry:
    """The figure of one evaluation on a card.

    Attributes:
      name: of the evaluation; "" if there is only one.
      value, error: text; the error may be "".
      below: lines under it: the floor of the codec, the numbers of both sides.
      differs: settings that are not those of the other entries, in words.
    """

    name: str
    value: str
    error: str = ""
    below: Sequence[str] = ()
    differs: str = ""


@dataclasses.dataclass(frozen=True)
class Card:
    """A headline: one measure of all evaluations, the best first and large.

    Attributes:
      title: of the measure.
      better: "lower" or "higher".
      section: the anchor of the section with its command and settings.
      entries: the best first, if they are comparable.
      comparable: whether all entries are of the same settings.
    """

    title: str
    better: str
    section: str
    entries: Sequence[Entry]
    comparable: bool = True


@dataclasses.dataclass(frozen=True)
class Page:
    """The whole page.

    Attributes:
      title: its heading.
      facts: a line for each run under the heading.
      cards: headlines.
      sections: in order.
      command: that writes the page.
      versions: of the packages, of each result that states them, as text.
    """

    title: str
    facts: Sequence[str]
    cards: Sequence[Card]
    sections: Sequence[Section]
    command: str
    versions: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Cell:
    """A value of a table.

    Attributes:
      text: of the value.
      note: a second, smaller line.
      share: length of a bar behind the value, 0 to 1; None for no bar.
    """

    text: str
    note: str = ""
    share: float | None = None


@dataclasses.dataclass(frozen=True)
class Column:
    """The head of a column: a title, and a second line, such as settings that differ."""

    title: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table whose first column names its rows; it scrolls horizontally on a narrow screen.

    Attributes:
      caption: of the table.
      columns: without the first.
      rows: (name, cells).
      folded: whether it is shown only if asked for.
    """

    caption: str
    columns: Sequence[Column]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    folded: bool = False
    template: ClassVar[str] = "table.html"


@dataclasses.dataclass(frozen=True)
class Tile:
    """A picture of a grid.

    Attributes:
      src: a data URI; "" for a picture that is not there.
      alt: its text alternative.
      caption: one or a few words under it.
      mark: "" or the word that marks it, such as "invalid".
    """

    src: str
    alt: str
    caption: str = ""
    mark: str = ""


@dataclasses.dataclass(frozen=True)
class Tiles:
    """A grid of pictures; `size` is the class of their size on the screen, see `tile_size`."""

    caption: str
    tiles: Sequence[Tile]
    size: str = "small"
    template: ClassVar[str] = "tiles.html"


@dataclasses.dataclass(frozen=True)
class Probe:
    """A sample with its nearest real images, and a sentence about the distances."""

    sample: Tile
    nearest: Sequence[Tile]
    text: str = ""


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """Samples next to their nearest real images."""

    caption: str
    probes: Sequence[Probe]
    size: str = "small"
    template: ClassVar[str] = "neighbours.html"


@dataclasses.dataclass(frozen=True)
class Strip:
    """One picture of a grid with equally wide columns, and the heads of these columns."""

    caption: str
    heads: Sequence[str]
    picture: Picture
    template: ClassVar[str] = "strip.html"


@dataclasses.dataclass(frozen=True)
class Strips:
    """Grids next to each other if the screen is wide enough."""

    strips: Sequence[Strip]
    template: ClassVar[str] = "strips.html"


@dataclasses.dataclass(frozen=True)
class Picture:
    """An embedded picture: a data URI, its text alternative, its size in pixels."""

    src: str
    alt: str
    width: int
    height: int
    caption: str = ""
    template: ClassVar[str] = "picture.html"

    @property
    def pixelated(self) -> bool:
        """Whether it is so small that a browser should enlarge its pixels unsmoothed."""
        return max(self.width, self.height) <= 256


@dataclasses.dataclass(frozen=True)
class Clip:
    """An embedded video: a data URI, its text alternative, the data URI of its first frame."""

    src: str
    kind: str
    text: str
    poster: str = ""


@dataclasses.dataclass(frozen=True)
class Clips:
    """Videos next to each other."""

    caption: str
    clips: Sequence[Clip]
    template: ClassVar[str] = "clips.html"


@dataclasses.dataclass(frozen=True)
class Chart:
    """A plot of `curves`.

    Attributes:
      title: of the plot.
      svg: markup whose colours are variables of the page's style.
      description: what it shows, for screen readers.
      legend: (name, number of its colour, whether its line is dashed).
      drawing: Matplotlib's figure, for a file of its own.
    """

    title: str
    svg: str
    description: str
    legend: Sequence[tuple[str, int, bool]]
    drawing: Any
    template: ClassVar[str] = "chart.html"


@dataclasses.dataclass(frozen=True)
class Charts:
    """Plots next to each other if the screen is wide enough."""

    charts: Sequence[Chart]
    template: ClassVar[str] = "charts.html"


def render(page: Page) -> str:
    """The page as HTML."""
    return _environment().get_template("page.html").render(page=page)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("evals.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["setting"] = setting
    return environment


def setting(value: Any) -> str:
    """A value of a setting as text."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(setting, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def picture(source: epath.PathLike | Image.Image, alt: str, caption: str = "") -> Picture:
    """An image with a text alternative; reduced if it is very large.

    Raises ImageError for a file that is not an image, and OSError for one that cannot be read.
    """
    if not isinstance(source, Image.Image):
        source = open_image(epath.Path(source).read_bytes())
    image = source.convert("RGB")
    image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return Picture(data_uri("image/png", buffer.getvalue()), alt, *image.size, caption)


def tile_source(path: epath.PathLike) -> str:
    """The data URI of a small picture file, embedded as it is."""
    path = epath.Path(path)
    return data_uri(_PICTURES[path.suffix], path.read_bytes())


def tile_size(path: epath.PathLike) -> str:
    """How large pictures like this one are shown: "small", "medium" or "large"."""
    side = max(open_image(epath.Path(path).read_bytes()).size)
    return "small" if side <= _SMALL else "medium" if side <= _MEDIUM else "large"


def clip(path: epath.PathLike, text: str, poster: Image.Image | None = None) -> Clip:
    """A video that plays in the page, muted and looping.

    Args:
      path: of the file.
      text: what it shows, for screen readers.
      poster: the picture that paper shows, the first frame.

    Raises ValueError for another suffix.
    """
    path = epath.Path(path)
    kind = _VIDEOS.get(path.suffix)
    if kind is None:
        raise ValueError(f"{path} is not a video that browsers play; expected {', '.join(_VIDEOS)}")
    still = picture(poster, text).src if poster is not None else ""
    return Clip(data_uri(kind, path.read_bytes()), kind, text, still)


def data_uri(kind: str, content: bytes) -> str:
    """Bytes of a media type as a URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
