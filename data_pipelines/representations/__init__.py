"""Representations by name: `make` creates one, `load` and `from_config` recreate a saved one.

representation = make("jpeg", size=256, quality=25)
representation.save(folder)
assert load(folder) == representation
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from data_pipelines.representations.base import CONFIG_FILE, Representation, Validity
from data_pipelines.utils.plugins import load_object

__all__ = ["Representation", "Validity", "from_config", "load", "make"]

# Imported on demand, so that a codec's library is needed only by its own representation.
_CLASSES = {
    "avc": "data_pipelines.representations.avc.representation:AvcRepresentation",
    "jpeg": "data_pipelines.representations.jpeg.representation:JpegRepresentation",
    "pixel": "data_pipelines.representations.pixel.representation:PixelRepresentation",
    "vq": "data_pipelines.representations.vq.representation:VqRepresentation",
}


def make(name: str, *, num_labels: int = 0, **options: Any) -> Representation:
    """The representation with this name.

    Args:
      name: "avc", "jpeg", "pixel", "vq", or "MODULE:CLASS" for one that is defined elsewhere.
      num_labels: label tokens, for a label-conditional model.
      **options: options of the representation; see its class. For those of codec bytes `tokenizer`
        is "bytes" or the path of a SentencePiece model.

    Raises:
      ValueError: an unknown name or option, a value out of range, or an unusable tokenizer.
    """
    return _class(name).from_options(options, num_labels)


def from_config(
    config: Mapping[str, Any], artifacts: Mapping[str, bytes] | None = None
) -> Representation:
    """The representation with this config.

    Args:
      config: as `Representation.to_config` returned it.
      artifacts: as `Representation.artifacts` returned them.

    Raises:
      ValueError: an incomplete config, an unknown name or option, or a missing or other artefact.
    """
    if "name" not in config:
        raise ValueError(
            "the representation's config has no 'name'; expected the values of to_config()"
        )
    return _class(config["name"]).from_config(config, artifacts or {})


def load(folder: epath.PathLike) -> Representation:
    """The representation that `Representation.save` wrote into a folder.

    Args:
      folder: local or remote (see `etils.epath`).

    Raises:
      ValueError: a file is missing, or as for `from_config`.
    """
    path = epath.Path(folder) / CONFIG_FILE
    if not path.is_file():
        raise ValueError(f"{folder} has no {CONFIG_FILE}; expected a folder with a representation")
    config = json.loads(path.read_text())
    try:
        return from_config(config, _Artifacts(epath.Path(folder)))
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


class _Artifacts(Mapping[str, bytes]):
    """The files of a folder, each read when asked for."""

    def __init__(self, folder: epath.Path):
        self._folder = folder

    def __getitem__(self, name: str) -> bytes:
        path = self._folder / name
        if not path.is_file():
            raise ValueError(
                f"found no {name}, which the tokens need; copy the file that was saved with this "
                "representation there"
            )
        return path.read_bytes()

    def __iter__(self) -> Iterator[str]:
        return (path.name for path in self._folder.iterdir())

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _class(name: str) -> type[Representation]:
    """Raises ValueError for a name that is none, or names what cannot be imported."""
    where = _CLASSES.get(name, name)
    if ":" not in where:
        known = ", ".join(f'"{known}"' for known in sorted(_CLASSES))
        raise ValueError(f'found representation {name!r}, expected {known} or "MODULE:CLASS"')
    found = load_object(where, "representation")
    if not (isinstance(found, type) and issubclass(found, Representation)):
        raise ValueError(f"representation {name!r} is no subclass of Representation")
    return found
