"""Example: python -m data_pipelines.describe --shards=SHARDS --sheet=sheet.png

Prints statistics of a folder of shards: documents, lengths, labels, and how well documents fill
rows. Other modes: hash every file (--verify), write an image of decoded documents (--sheet), or
write one document as a file (--document=KEY --out=FILE).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import flags
from etils import epath
from PIL import Image

from data_pipelines.packing.planner import make_plan
from data_pipelines.representations import contact_sheet
from data_pipelines.shards import reader
from data_pipelines.shards.reader import Shards
from data_pipelines.shards.storage import ShardError
from data_pipelines.utils import command

_BARS = 12
_BAR_WIDTH = 40
_LABELS = 20
_SHEET_TILES = 64


def describe(folder: epath.PathLike, seq_len: int = 0) -> str:
    """Returns statistics of a folder of shards as text.

    Args:
      folder: a complete folder of shards.
      seq_len: sequence length of the rows whose fill is computed; 0 for two powers of 2.

    Raises:
      FileNotFoundError, ShardError: see `Shards`.
    """
    manifest = reader.read_manifest(folder)
    representation = manifest["representation"]
    options = ", ".join(f"{k}={v}" for k, v in representation["config"].items() if k != "name")
    lines = [
        f"folder          {folder}",
        f"representation  {representation['config'].get('name', '?')}, fingerprint "
        f"{representation['fingerprint']}: {options}",
        f"source          {manifest['settings']['source']}",
        f"rejected        {manifest['rejects']['count']:,}" + _reasons(manifest["rejects"]),
        f"skipped         {reader.skipped_text(manifest)}",
        f"duplicates      {_duplicates(manifest['duplicates'])}",
        *(f"warning         {text}" for text in manifest["warnings"]),
    ]
    for split in manifest["splits"]:
        lines += ["", *_describe_split(Shards(folder, split), seq_len)]
    return "\n".join(lines)


def draw_sheet(documents: Shards, tiles: int = _SHEET_TILES) -> Image.Image:
    """Decodes documents at even intervals in the split and arranges them in a square grid.

    Raises ValueError if the representation's media are not images, or the split is empty.
    """
    if not len(documents):
        raise ValueError(f"split {documents.split!r} of {documents.folder} has no documents")
    chosen = np.unique(np.linspace(0, len(documents) - 1, min(tiles, len(documents))).astype(int))
    tokens = documents.read(chosen.tolist())
    return contact_sheet.sheet_of_documents(documents.representation, tokens)


def write_document(documents: Shards, key: str, copy: int, out: epath.PathLike) -> int:
    """Writes a document as an image or video file and returns its size in bytes.

    Raises:
      KeyError: the split has no such document.
      ValueError: the representation has no files.
    """
    (tokens,) = documents.read([documents.find(key, copy)])
    to_bytes = documents.representation.to_bytes if documents.representation.suffix else None
    if to_bytes is None:
        raise ValueError(
            f"representation {documents.representation.name!r} cannot write documents as files"
        )
    data = to_bytes(tokens)
    epath.Path(out).write_bytes(data)
    return len(data)


def verify(folder: epath.PathLike) -> Iterator[tuple[str, str]]:
    """Hashes every file of every split; yields (file name, error or '') for each."""
    for split in reader.read_manifest(folder)["splits"]:
        yield from Shards(folder, split).verify()


def _describe_split(documents: Shards, seq_len: int) -> list[str]:
    part = documents.manifest["splits"][documents.split]
    size = sum(shard["records"]["bytes"] for shard in part["shards"])
    lines = [
        f"{documents.split}: {part['documents']:,} documents of {part['images']:,} images, "
        f"{part['tokens']:,} tokens in {len(part['shards'])} shards, {size / 1e6:,.1f} MB",
    ]
    if not len(documents):
        return lines
    lines += _lengths(documents.lengths)
    lines += _fill(documents.lengths, seq_len)
    lines += _labels(documents)
    return lines


def _lengths(lengths: np.ndarray) -> list[str]:
    marks = np.percentile(lengths, [0, 50, 99, 100]).astype(int)
    lines = [
        f"  tokens per document: mean {lengths.mean():,.1f}, min {marks[0]:,}, median "
        f"{marks[1]:,}, 99th percentile {marks[2]:,}, max {marks[3]:,}"
    ]
    width = max(1, math.ceil((marks[3] - marks[0] + 1) / _BARS))
    edges = np.arange(marks[0], marks[3] + width + 1, width)
    counts, _ = np.histogram(lengths, edges)
    for edge, count in zip(edges, counts, strict=False):
        bar = "#" * round(_BAR_WIDTH * count / counts.max())
        lines.append(f"  {edge:9,} - {edge + width - 1:9,} {count:12,} {bar}")
    return lines


def _fill(lengths: np.ndarray, seq_len: int) -> list[str]:
    positions = lengths + np.uint32(1)  # of the framed document
    shortest = 2 ** math.ceil(math.log2(int(positions.max())))
    seq_lens = [seq_len] if seq_len else [shortest, 4 * shortest]
    return [f"  seq_len {n:,}: {make_plan(positions, seq_len=n).stats}" for n in seq_lens]


def _labels(documents: Shards) -> list[str]:
    values, counts = np.unique(documents.labels, return_counts=True)
    if values.tolist() == [-1]:
        return ["  no labels"]
    lines = [f"  {len(values)} labels, {counts.min():,} to {counts.max():,} documents each"]
    for value, count in list(zip(values.tolist(), counts.tolist(), strict=True))[:_LABELS]:
        name = documents.label_names[value] if value >= 0 else "(none)"
        lines.append(f"  {value:6} {name:24} {count:12,}")
    if len(values) > _LABELS:
        lines.append(f"  ... and {len(values) - _LABELS} more")
    return lines


def _reasons(rejects: dict[str, Any]) -> str:
    lines = [f"\n  {count:12,}  {reason}" for reason, count in rejects["reasons"].items()]
    return (f" ({rejects['file']})" if lines else "") + "".join(lines)


def _duplicates(facts: dict[str, Any]) -> str:
    if not facts["dropped"]:
        return "not checked"
    return f"{facts['count']:,} dropped" + (f" ({facts['file']})" if facts["count"] else "")


def _define_flags() -> None:
    """Defines the flags; not on import, since other commands have flags of the same names."""
    flags.DEFINE_string("shards", None, "Folder that data_pipelines.prepare wrote.", required=True)
    flags.DEFINE_string("split", "train", "Split of --sheet and --document, train or eval.")
    flags.DEFINE_integer(
        "seq_len", 0, "Sequence length to compute the fill for; 0: two powers of 2."
    )
    flags.DEFINE_boolean("verify", False, "Hash every file and compare with the manifest.")
    flags.DEFINE_string("sheet", None, "File (.png) for an image of decoded documents.")
    flags.DEFINE_string("document", None, "Key of a document to write to --out.")
    flags.DEFINE_integer("copy", 0, "Augmented copy of --document; 0: the image itself.")
    flags.DEFINE_string("out", None, "File for --document.")


def main(arguments: Sequence[str]) -> None:
    command.no_arguments(arguments)
    _run(flags.FLAGS)


def _run(values: Any) -> None:
    if values.verify:
        _print_verification(values.shards)
    if values.document is not None:
        if values.out is None:
            raise ValueError("--document needs --out=FILE to write to")
        documents = Shards(values.shards, values.split)
        try:
            size = write_document(documents, values.document, values.copy, values.out)
        except KeyError as error:
            raise ValueError(error.args[0]) from error
        print(f"{values.out}: {size:,} bytes")
    if values.sheet is not None:
        sheet = draw_sheet(Shards(values.shards, values.split))
        contact_sheet.save(sheet, values.sheet)
        print(f"{values.sheet}: {sheet.width} x {sheet.height} pixels")
    if not (values.verify or values.document or values.sheet):
        print(describe(values.shards, values.seq_len))


def _print_verification(folder: str) -> None:
    damaged = files = 0
    for name, wrong in verify(folder):
        files += 1
        if wrong:
            damaged += 1
            print(f"{name}: {wrong}")
    if damaged:
        raise ShardError(
            f"{damaged} of {files} files are damaged; restore them, or delete them and run prepare "
            "again"
        )
    print(f"all {files} files are intact")


if __name__ == "__main__":
    _define_flags()
    command.run(main, ShardError, OSError)
