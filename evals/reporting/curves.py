"""Curves and scatter plots as inline SVG for the report page; text stays text."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data_pipelines.utils.files import write_atomically
from evals.reporting.page import Html, element

# Colours that are distinct for colour-blind readers (Okabe and Ito), each with its own dash.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_DASHES = ("-", "--", "-.", ":")

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]


def lines(series: Series, title: str, x_label: str, y_label: str, *, log_x: bool = False) -> Html:
    """Curves in one plot.

    Args:
      series: name -> (x, y), equally long.
      title: of the figure; also its text for screen readers, with each curve's last value.
    """
    figure, axes = _axes(title, x_label, y_label)
    for number, (name, (x, y)) in enumerate(series.items()):
        axes.plot(
            x,
            y,
            label=name,
            color=_COLOURS[number % len(_COLOURS)],
            linestyle=_DASHES[number // len(_COLOURS) % len(_DASHES)],
            marker="o" if len(x) < 3 else "",
            linewidth=1.6,
        )
    if log_x:
        axes.set_xscale("log")
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=9)
    ends = [f"{name} ends at {y[-1]:.4g}" for name, (_, y) in series.items() if len(y)]
    return _figure(figure, f"{title}: {'; '.join(ends)}", title)


def scatter(
    points: Series, title: str, x_label: str, y_label: str, text: str, *, log_x: bool = False
) -> Html:
    """Points in one plot; `text` describes it for screen readers."""
    figure, axes = _axes(title, x_label, y_label)
    for number, (name, (x, y)) in enumerate(points.items()):
        axes.scatter(x, y, s=14, label=name, color=_COLOURS[number % len(_COLOURS)], alpha=0.8)
    axes.axhline(0.0, color="#888", linewidth=0.8)
    if log_x:
        axes.set_xscale("log")
    if len(points) > 1:
        axes.legend(frameon=False, fontsize=9)
    return _figure(figure, text, title)


def save(figure: Html, path: epath.PathLike) -> None:
    """Writes a plot of `lines` or `scatter` to an .svg file."""
    svg = figure[figure.index("<svg") : figure.index("</svg>") + len("</svg>")]
    write_atomically(epath.Path(path), svg.encode())


def _axes(title: str, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(color="#e3e3e3", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _figure(figure: Figure, text: str, salt: str) -> Html:
    buffer = io.StringIO()
    # Ids inside an SVG are shared by the whole page: the salt keeps those of two plots distinct.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace("<svg ", '<svg aria-hidden="true" ', 1)
    return element("figure", Html(svg), role="img", aria_label=text)
