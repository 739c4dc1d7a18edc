"""Bits of real images under the model, and the model as a compressor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evals.codelength.sizes import TITLES as SIZES
from evals.reporting import comparison
from evals.reporting.numbers import PLUS_MINUS, with_error
from evals.reporting.page import Cell, Column, Figure, Table
from evals.reporting.results import Evaluation
from evals.sections import figures


def likelihood(evaluations: Sequence[Evaluation]) -> list[Figure]:
    """likelihood.json: bits of the model and of the codec's stream."""
    kind = "likelihood"
    notes = comparison.differences(evaluations, kind)
    columns = [Column(one.name, note) for one, note in zip(evaluations, notes, strict=True)]
    results = [one.results[kind] for one in evaluations]
    names = [
        ("bits_per_image", "Bits per image ↓"),
        ("bits_per_byte", "Bits per byte of the codec's stream ↓"),
        ("bits_per_pixel", "Bits per pixel ↓"),
        ("bits_per_dimension", "Bits per dimension ↓"),
        ("bits_per_token", "Bits per token ↓"),
        ("stream_bits_per_image", "Codec's stream, bits per image"),
        ("psnr_db", "PSNR of the codec, dB ↑"),
    ]
    rows = [
        (text, [figures.metric_cell(result, name) for result in results])
        for name, text in names
        if any(result.get(name) is not None for result in results)
    ]
    texts = []
    for one in evaluations:
        of = one.results[kind]["settings"]
        count = f"{one.results[kind]['n_images']:,} documents"
        texts.append(f"{count} ({of['images_are']}), label: {of['label']}")
    table = Table(figures.READING, columns, rows)
    text = "; ".join(dict.fromkeys(texts))
    return [figures.figure(evaluations, kind, "Likelihood of real images", [table], text)]


def compression(evaluations: Sequence[Evaluation]) -> list[Figure]:
    """compression.json: bytes per image under the model and under other codes."""
    kind = "compression"
    notes = comparison.differences(evaluations, kind)
    results = [one.results[kind] for one in evaluations]
    names = [name for name in SIZES if any(f"{name}_per_image" in result for result in results)]
    largest = max(
        (result.get(f"{name}_per_image") or 0 for result in results for name in names), default=0
    )
    columns = []
    for one, note in zip(evaluations, notes, strict=True):
        prefix = f"{one.name}: " if len(evaluations) > 1 else ""
        columns += [
            Column(f"{prefix}bytes per image ↓", note),
            Column(f"{prefix}share of the stream ↓"),
        ]
    rows = [
        (SIZES[name], [cell for result in results for cell in _size(result, name, largest)])
        for name in names
    ]
    table = Table("Size of the same documents under several codes", columns, rows)
    title = "The model as a compressor"
    return [figures.figure(evaluations, kind, title, [table])]


def _size(result: Mapping[str, Any], name: str, largest: float) -> tuple[Cell, Cell]:
    per_image, ratio = f"{name}_per_image", f"{name}_over_stream"
    value, share = result.get(per_image), result.get(ratio)
    if value is None or share is None:
        return Cell("-"), Cell("-")
    text = with_error(value, result.get(f"{per_image}_standard_error"), PLUS_MINUS)
    error = result.get(f"{ratio}_standard_error")
    percent = with_error(100 * share, 100 * error if error else None, PLUS_MINUS)
    return Cell(text, share=value / largest), Cell(f"{percent}\u00a0%")
