"""Clips: their distances, and their quality by frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines.media.videos import VideoError, first_frame
from evals.reporting import comparison, curves, page
from evals.reporting.curves import Line
from evals.reporting.page import Block, Chart, Charts, Clips, Figure
from evals.reporting.results import Evaluation
from evals.sections import figures
from evals.sections.distances import compared


def videos(evaluations: Sequence[Evaluation]) -> list[Figure]:
    """video.json: distances, counts of documents, quality by frame, and clips."""
    found = [compared(evaluations, "video", "Distances from real clips")]
    for one in evaluations:
        result = one.results["video"]
        continued = result.get("continuations")
        blocks: list[Block] = []
        if continued:
            blocks.append(Charts(_by_frame(continued)))
        what = "Continuations of real clips" if _are_continuations(result) else "Sampled clips"
        shown, missing = [], []
        for number_, name in enumerate(result["videos"], 1):
            path = one.file(name)
            try:
                text = f"{what} of {one.name}, number {number_}"
                shown.append(page.clip(path, text, first_frame(path.read_bytes())))
            except (VideoError, OSError) as error:
                missing.append(f"{name}: {error}")
        if shown:
            layout = "original, prompt and continuations next to each other"
            caption = f"{len(shown)} clip{'s' * (len(shown) > 1)}" + (
                f": {layout}" if _are_continuations(result) else ""
            )
            blocks.append(Clips(caption, shown))
        if not blocks and not missing:
            continue
        text = ""
        if continued:
            text = f"Means over {continued['n']:,} continued clips, frames of the prompt included"
        figure = Figure(
            f"{what}{figures.of_one(one, evaluations)}",
            blocks,
            [comparison.source(one, "video")],
            text,
            missing,
        )
        found.append(figure)
    return found


def _are_continuations(result: Mapping[str, Any]) -> bool:
    return result["settings"].get("documents") == "continuations" or "continuations" in result


def _by_frame(found: Mapping[str, Any]) -> list[Chart]:
    charts = []
    for metric, title in (("psnr_db", "PSNR, dB"), ("ssim", "SSIM")):
        frames = list(range(1, len(found[metric]) + 1))
        series = {
            "continuation": Line(frames, found[metric]),
            "codec alone": Line(frames, found[f"floor_{metric}"], colour=1, dashed=True),
        }
        charts.append(curves.lines(series, title, "frame"))
    return charts
