"""Samples of each evaluation, next to their nearest real images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evals import gallery
from evals.reporting import comparison, page
from evals.reporting.page import Block, Figure, Neighbours, Probe, Tile, Tiles
from evals.reporting.results import Evaluation
from evals.sections import figures, headlines


def samples(evaluations: Sequence[Evaluation]) -> list[Figure]:
    """Pictures of each evaluation: documents in random order, and their nearest real images."""
    found = []
    read = {one.name: gallery.read(one.folder) for one in evaluations if "metrics" in one.results}
    shown = [one for one in evaluations if read.get(one.name)]
    for one in shown:
        pictures = read[one.name] or {}
        continuations = any(sample.get("continuation") for sample in pictures["samples"])
        documents = "continuations of real images" if continuations else "samples"
        found.append(
            Figure(
                f"{documents.capitalize()}{figures.of_one(one, shown)}",
                _pictures(one, pictures, documents),
                [comparison.source(one, "metrics")],
                "; ".join(headlines.sampling(one.results["metrics"])).capitalize(),
            )
        )
    return found


def _pictures(one: Evaluation, pictures: Mapping[str, Any], documents: str) -> list[Block]:
    shown = pictures["samples"]
    tiles = [_sample(one, sample) for sample in shown]
    size = page.tile_size(_path(one, shown[0]["file"]))
    text = f"{len(shown):,} of {pictures['n']:,} {documents}, in random order (seed "
    text += f"{pictures['seed']}), none selected."
    if "valid" in shown[0]:
        marked = sum(not sample["valid"] for sample in shown)
        text += f" {marked} of these are not strictly valid" + (" (marked)." if marked else ".")
    blocks: list[Block] = [Tiles(text, tiles, size)]
    probes = [
        _probe(one, sample, tile)
        for sample, tile in zip(shown, tiles, strict=True)
        if "nearest" in sample
    ]
    if probes:
        text = (
            f"Nearest real images: the first {len(probes)} of these, each with its "
            f"{len(probes[0].nearest)} nearest of {pictures['n_references']:,} "
            f"({pictures['references']}) and the distances of their features "
            f"({pictures['features']}). Authenticity {figures.percent(pictures['authenticity'])}: "
            f"the share of all {documents} that are farther from their nearest real image than "
            f"that image is from its own nearest one (“real to real”). Copies give 0, "
            "images of the same distribution about a half."
        )
        blocks.append(Neighbours(text, probes, size))
    return blocks


def _sample(one: Evaluation, sample: Mapping[str, Any]) -> Tile:
    mark = "" if sample.get("valid", True) else "invalid"
    parts = ["Continuation" if sample.get("continuation") else "Sample", sample["key"]]
    if sample.get("label") is not None:
        parts.append(f"with label {sample['label']}")
    alt = " ".join(parts) + (f", {mark}" if mark else "")
    return Tile(page.tile_source(_path(one, sample["file"])), alt, "", mark)


def _probe(one: Evaluation, sample: Mapping[str, Any], tile: Tile) -> Probe:
    nearest = [
        Tile(
            page.tile_source(_path(one, each["file"])) if each["file"] else "",
            f"Real image {each['key']}, number {rank} in distance",
            f"{each['distance']:.3g}",
        )
        for rank, each in enumerate(sample["nearest"], 1)
    ]
    caption = "continuation" if sample.get("continuation") else "sample"
    text = f"real to real: {sample['nearest_to_each_other']:.3g}"
    return Probe(Tile(tile.src, tile.alt, caption, tile.mark), nearest, text)


def _path(one: Evaluation, name: str) -> Any:
    return one.file(f"{gallery.FOLDER}/{name}")
