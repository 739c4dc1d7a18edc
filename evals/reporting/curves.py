"""Curves and scatter plots as SVG for the page and for files; text stays text.

On the page all colours are variables of its style, so that plots follow the colour scheme; a file
of its own gets fixed colours on white.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import re
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from data_pipelines.utils.files import write_atomically
from evals.reporting.numbers import number
from evals.reporting.page import Chart

# Colours that are distinct for colour-blind readers (Okabe and Ito). The page's style has the same
# numbers, --c0 to --c6.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b5508b", "#2f8fc4", "#a66f00", "#444444")
# Placeholders in the drawing -> (variable of the page, colour in a file).
_INK, _GRID = "#010101", "#020202"
_SERIES = tuple(f"#03000{number}" for number in range(len(_COLOURS)))
_PLAIN = FuncFormatter(lambda value, _: f"{value:,.10g}")  # numbers without powers of ten
_NAMES = {
    _INK: ("var(--muted)", "#444444"),
    _GRID: ("var(--line)", "#e3e3e3"),
    **{
        placeholder: (f"var(--c{number})", colour)
        for number, (placeholder, colour) in enumerate(zip(_SERIES, _COLOURS, strict=True))
    },
}


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve.

    Attributes:
      x, y: its points, equally many.
      error: standard errors of y, drawn as a band; None for no band.
      colour: number of its colour.
      dashed: whether its line is dashed.
      level: whether it is one value for all x, such as a floor; x and y then have one point.
    """

    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] | None = None
    colour: int = 0
    dashed: bool = False
    level: bool = False


def lines(
    series: Mapping[str, Line], title: str, x_label: str, y_label: str = "", *, log_x: bool = False
) -> Chart:
    """Curves in one plot; the text for screen readers has each curve's last value."""
    figure, axes = _axes(x_label, y_label)
    for line in series.values():
        colour, style = _SERIES[line.colour % len(_SERIES)], "--" if line.dashed else "-"
        if line.level:
            axes.axhline(line.y[0], color=colour, linestyle=style, linewidth=1.2)
            continue
        marker = "o" if len(line.x) <= 12 else ""
        axes.plot(
            line.x, line.y, color=colour, linestyle=style, linewidth=1.5, marker=marker, ms=3.5
        )
        if line.error is not None:
            y, error = np.asarray(line.y, float), np.asarray(line.error, float)
            axes.fill_between(line.x, y - error, y + error, color=colour, alpha=0.18, lw=0)
    if log_x:
        _log_x(axes)
    ends = [
        f"{name} {'is' if line.level else 'ends at'} {number(float(line.y[-1]))}"
        for name, line in series.items()
        if len(line.y)
    ]
    legend = [(name, line.colour % len(_SERIES), line.dashed) for name, line in series.items()]
    return _chart(figure, title, f"{title} by {x_label}: {'; '.join(ends)}.", legend)


def scatter(
    x: Sequence[float],
    y: Sequence[float],
    title: str,
    x_label: str,
    y_label: str,
    description: str,
    *,
    log_x: bool = False,
) -> Chart:
    """Points in one plot; `description` is its text for screen readers."""
    figure, axes = _axes(x_label, y_label)
    axes.scatter(x, y, s=12, color=_SERIES[0], alpha=0.85, linewidths=0)
    axes.axhline(0.0, color=_INK, linewidth=0.8)
    if log_x:
        _log_x(axes)
    return _chart(figure, title, description, [])


def save(chart: Chart, path: epath.PathLike) -> None:
    """Writes a plot with its title and legend to an .svg file, in fixed colours on white."""
    chart.drawing.axes[0].set_title(chart.title, fontsize=9, loc="left", color=_INK)
    if chart.legend:
        width, height = chart.drawing.get_size_inches()
        chart.drawing.set_size_inches(width + 1.5, height)
        entries = [
            Line2D([], [], color=_SERIES[colour], ls="--" if dashed else "-", label=name)
            for name, colour, dashed in chart.legend
        ]
        chart.drawing.legend(
            handles=entries, loc="outside right upper", fontsize=8, frameon=False, labelcolor=_INK
        )
    svg = _svg(chart.drawing, "").replace("<svg ", '<svg style="background: #fff" ', 1)
    for placeholder, (_, colour) in _NAMES.items():
        svg = svg.replace(placeholder, colour)
    write_atomically(epath.Path(path), svg.encode())


def _axes(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(3.7, 2.1), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x_label, fontsize=9, color=_INK, loc="right")
    axes.set_ylabel(y_label, fontsize=9, color=_INK)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.tick_params(colors=_INK, labelsize=9, length=0, which="both")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    axes.margins(x=0.02)
    axes.locator_params(nbins=5)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(_PLAIN)
    return figure, axes


def _log_x(axes: Axes) -> None:
    axes.set_xscale("log")  # which sets formatters of its own
    first, last = axes.get_xlim()
    if last > 4 * first:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(_PLAIN)
    axes.xaxis.set_minor_formatter(NullFormatter() if last > 4 * first else _PLAIN)


def _chart(
    figure: Figure, title: str, description: str, legend: Sequence[tuple[str, int, bool]]
) -> Chart:
    # Ids inside an SVG are shared by the whole page: the salt keeps those of two plots distinct.
    svg = _svg(figure, f"{title}\n{description}\n{legend}")
    for placeholder, (variable, _) in _NAMES.items():
        svg = svg.replace(placeholder, variable)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # would be of the whole page
    head, rest = svg.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head).replace("<svg", '<svg aria-hidden="true"')
    return Chart(title, f"{head}>{rest}", description, legend, figure)


def _svg(figure: Figure, salt: str) -> str:
    """The drawing as SVG whose colours are placeholders."""
    buffer = io.StringIO()
    digest = hashlib.sha256(salt.encode()).hexdigest()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": digest}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Matplotlib gives every group an id, the same ones in all plots; only some are referred to.
    used = set(re.findall(r"#(\w+)[\")]", svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", svg)
    return re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", svg)
