"""Opens a source by its spec, `SCHEME:ARGUMENT`."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable

from data_pipelines.media import Kind
from data_pipelines.sources import files
from data_pipelines.sources.archives.tar import TarSource
from data_pipelines.sources.base import Source, SourceError
from data_pipelines.sources.folders.folder import FolderSource
from data_pipelines.sources.generated.digits import DigitsSource
from data_pipelines.sources.generated.moving_digits import MovingDigitsSource
from data_pipelines.sources.tables.parquet import ParquetSource
from data_pipelines.sources.tfds import TfdsSource
from data_pipelines.utils.files import SCHEMES

_SOURCES: dict[str, Callable[[str, Kind], Source]] = {
    source.scheme: source
    for source in (
        DigitsSource,
        MovingDigitsSource,
        FolderSource,
        TarSource,
        TfdsSource,
        ParquetSource,
    )
}
_SYNTAX = {
    "digits": "digits",
    "moving_digits": "moving_digits[:CLIPS]",
    "folder": "folder:PATH",
    "tar": "tar:GLOB",
    "tfds": "tfds:NAME[/CONFIG][:SPLIT]",
    "parquet": "parquet:GLOB",
}


def open_source(spec: str, kind: Kind = "image") -> Source:
    """Opens the source of images or videos that a spec names.

    Raises:
      SourceError: no source is given, its scheme is unknown, or there is nothing to read.
      StorageUnavailable: its storage does not answer.
    """
    if not spec:
        raise SourceError(
            "there is no source: name the images or videos to read with --source (for a training "
            f"run: --config.data.source, or --config.data.shards). Available: {_available()}"
        )
    scheme, _, argument = spec.partition(":")
    if spec.startswith(f"{scheme}://"):
        files.check_scheme(spec)
    if scheme not in _SOURCES:
        raise SourceError(
            f"there is no source {spec!r}: did you mean {_nearest(spec, scheme)!r}? "
            f"Available: {_available()}"
        )
    return _SOURCES[scheme](argument, kind)


def _available() -> str:
    return ", ".join(_SYNTAX.values())


def _nearest(spec: str, scheme: str) -> str:
    """The most likely correct spec: a path lacked its scheme, or a scheme was misspelt."""
    if os.path.isdir(spec):
        return f"folder:{spec}"
    if scheme in SCHEMES and spec.startswith(f"{scheme}://") and "." not in os.path.basename(spec):
        return f"folder:{spec}"
    cutoff = 0.6 if ":" in spec else 0.0
    near = difflib.get_close_matches(scheme.lower(), _SYNTAX, n=1, cutoff=cutoff)
    for suffixes, kind in (((".tar", ".tar.gz", ".tgz"), "tar"), ((".parquet",), "parquet")):
        if spec.endswith(suffixes) and not (near and ":" in spec):
            return f"{kind}:{spec}"
    if near and ":" in spec:
        return near[0] + spec[len(scheme) :]
    return _SYNTAX[near[0] if near else "folder"]
