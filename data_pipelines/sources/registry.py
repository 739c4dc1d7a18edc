"""Opens a source by its spec, `SCHEME:ARGUMENT`."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable

from data_pipelines.media import Kind
from data_pipelines.sources.base import Source, SourceError
from data_pipelines.sources.digits import DigitsSource
from data_pipelines.sources.folder import FolderSource
from data_pipelines.sources.moving_digits import MovingDigitsSource
from data_pipelines.sources.parquet import ParquetSource
from data_pipelines.sources.tar import TarSource
from data_pipelines.sources.tfds import TfdsSource

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

    Raises SourceError if the scheme is unknown or there is nothing to read.
    """
    scheme, _, argument = spec.partition(":")
    if scheme not in _SOURCES:
        raise SourceError(
            f"there is no source {spec!r}: did you mean {_nearest(spec, scheme)!r}? "
            f"Available: {', '.join(_SYNTAX.values())}"
        )
    return _SOURCES[scheme](argument, kind)


def _nearest(spec: str, scheme: str) -> str:
    """The most likely correct spec: a path lacked its scheme, or a scheme was misspelt."""
    if os.path.isdir(spec):
        return f"folder:{spec}"
    cutoff = 0.6 if ":" in spec else 0.0
    near = difflib.get_close_matches(scheme.lower(), _SYNTAX, n=1, cutoff=cutoff)
    for suffixes, kind in (((".tar", ".tar.gz", ".tgz"), "tar"), ((".parquet",), "parquet")):
        if spec.endswith(suffixes) and not (near and ":" in spec):
            return f"{kind}:{spec}"
    if near and ":" in spec:
        return near[0] + spec[len(scheme) :]
    return _SYNTAX[near[0] if near else "folder"]
