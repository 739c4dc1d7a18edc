"""Example: python -m data_pipelines.describe --shards=SHARDS --sheet=sheet.png

Tells what is in a folder of shards: documents, lengths, labels, how well they fill rows. On
request it hashes every file (--verify), draws documents (--sheet) or writes one as a file
(--document=KEY --out=FILE).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import flags
from etils import epath
from PIL import Image

from data_pipelines.packing import plan
from data_pipelines.representations import contact_sheet as sheet
from data_pipelines.shards import reader
from data_pipelines.shards.files import ShardError
from data_pipelines.shards.reader import Shards
from data_pipelines.utils import command

_BARS = 12
_BAR_WIDTH = 40
_LABELS = 20
_SHEET_TILES = 64


def describe(folder: epath.PathLike, seq_len: int = 0) -> str:
    """What is in a folder of shards, as text to read.

    Args:
      folder: a complete folder of shards.
      seq_len: places of the rows whose fill is told; 0 tells it for powers of two.

    Raises:
      FileNotFoundError, ShardError: see `Shards`.
    """
    manifest = reader.read_manifest(folder)
    representation = manifest["representation"]
    options = ", ".join(f"{k}={v}" for k, v in representation["config"].items() if k != "name")
    lines = [
        f"{folder}",
        f"representation  {representation['config'].get('name', '?')}, fingerprint "
        f"{representation['fingerprint']}: {options}",
        f"source          {manifest['settings']['source']}",
        f"rejected        {manifest['rejects']['count']:,}" + _reasons(manifest["rejects"]),
        f"duplicates      {_duplicates(manifest['duplicates'])}",
    ]
    for split in manifest["splits"]:
        lines += ["", *_describe_split(Shards(folder, split), seq_len)]
    return "\n".join(lines)


def contact_sheet(documents: Shards, tiles: int = _SHEET_TILES) -> Image.Image:
    """Documents spread evenly over the split, decoded, in a square grid.

    Raises ValueError if the representation's media are not images, or the split is empty.
    """
    if not len(documents):
        raise ValueError(f"split {documents.split!r} of {documents.folder} holds no document")
    chosen = np.unique(np.linspace(0, len(documents) - 1, min(tiles, len(documents))).astype(int))
    tokens = documents.read(chosen.tolist())
    return sheet.sheet_of_documents(documents.representation, tokens)


def write_document(documents: Shards, key: str, copy: int, out: epath.PathLike) -> int:
    """Writes a document as the file that it stands for and returns the file's size in bytes.

    Raises:
      KeyError: the split has no such document.
      ValueError: the representation has no files.
    """
    (tokens,) = documents.read([documents.find(key, copy)])
    to_bytes = getattr(documents.representation, "to_bytes", None)
    if to_bytes is None:
        raise ValueError(f"documents of {documents.representation.name!r} are no files")
    data = to_bytes(tokens)
    epath.Path(out).write_bytes(data)
    return len(data)


def verify(folder: epath.PathLike) -> Iterator[tuple[str, str]]:
    """Hashes every file of every split: yields (file name, '' or what is wrong)."""
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
        f"  tokens a document: mean {lengths.mean():,.1f}, smallest {marks[0]:,}, median "
        f"{marks[1]:,}, 99 % {marks[2]:,}, largest {marks[3]:,}"
    ]
    width = max(1, math.ceil((marks[3] - marks[0] + 1) / _BARS))
    edges = np.arange(marks[0], marks[3] + width + 1, width)
    counts, _ = np.histogram(lengths, edges)
    for edge, count in zip(edges, counts, strict=False):
        bar = "#" * round(_BAR_WIDTH * count / counts.max())
        lines.append(f"  {edge:9,} - {edge + width - 1:9,} {count:12,} {bar}")
    return lines


def _fill(lengths: np.ndarray, seq_len: int) -> list[str]:
    places = lengths + np.uint32(1)  # the framing takes one
    shortest = 2 ** math.ceil(math.log2(int(places.max())))
    chosen = [seq_len] if seq_len else [shortest, 4 * shortest]
    return [f"  rows of {row:,}: {plan.plan(places, seq_len=row).stats}" for row in chosen]


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
        return "not looked for"
    return f"{facts['count']:,} left out" + (f" ({facts['file']})" if facts["count"] else "")


def _define_flags() -> None:
    """Not at import: other jobs have flags of the same names."""
    flags.DEFINE_string("shards", None, "Folder that prepare wrote.", required=True)
    flags.DEFINE_string("split", "train", "Split that --sheet and --document look into.")
    flags.DEFINE_integer("seq_len", 0, "Places of a row whose fill to tell.")
    flags.DEFINE_boolean("verify", False, "Hash every file and compare.")
    flags.DEFINE_string("sheet", None, "Write a contact sheet of decoded documents, .png.")
    flags.DEFINE_string("document", None, "Key of a document to write to --out.")
    flags.DEFINE_integer("copy", 0, "Which copy of --document; 0 is the image itself.")
    flags.DEFINE_string("out", None, "File for --document.")


def main(arguments: Sequence[str]) -> None:
    command.no_arguments(arguments)
    try:
        _run(flags.FLAGS)
    except KeyError as error:
        raise ValueError(error.args[0]) from error


def _run(given: Any) -> None:
    if given.verify:
        _print_verification(given.shards)
    if given.document is not None:
        if given.out is None:
            raise ValueError("--document needs --out=FILE to write to")
        documents = Shards(given.shards, given.split)
        size = write_document(documents, given.document, given.copy, given.out)
        print(f"{given.out}: {size:,} bytes")
    if given.sheet is not None:
        picture = contact_sheet(Shards(given.shards, given.split))
        sheet.save(picture, given.sheet)
        print(f"{given.sheet}: {picture.width} x {picture.height} pixels")
    if not (given.verify or given.document or given.sheet):
        print(describe(given.shards, given.seq_len))


def _print_verification(folder: str) -> None:
    damaged = files = 0
    for name, wrong in verify(folder):
        files += 1
        if wrong:
            damaged += 1
            print(f"{name}: {wrong}")
    if damaged:
        raise ShardError(
            f"{damaged} of {files} files are not as written; restore them, or delete them and run "
            "prepare again"
        )
    print(f"all {files} files are as written")


if __name__ == "__main__":
    _define_flags()
    command.run(main, ShardError, OSError)
