"""Sets of images by number: files of a folder or an archive, records, arrays, shards, fitted ones.

`evals.features` extracts features of them, `documents` encodes them. Reading and decoding are
separate, so that a set can be identified by its bytes alone.
"""

from __future__ import annotations

import abc
import glob
import os
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from etils import epath
from PIL import Image

from data_pipelines.loading.joined_shards import JoinedShards, shard_folders
from data_pipelines.media.images import normalise, open_image
from data_pipelines.representations.base import Representation
from data_pipelines.shards.reader import MANIFEST
from data_pipelines.shards.storage import ShardError, open_records
from data_pipelines.sources import Item, Source, open_source
from data_pipelines.utils import npz

_KINDS = ("digits", "folder", "tar", "tfds", "parquet", "shards", "records", "npz")
_RECORDS = ".array_record"
ARRAY = "arr_0"  # the images of a sample batch: numpy.savez names arrays by position
LABELS = "arr_1"  # the classes, in batches of class-conditional models

# How image files become RGB pixels: as a viewer shows them (orientation, colour profile,
# transparency on white), or as other evaluation tools read them, `PIL.Image.convert("RGB")`.
OpenAs = Literal["viewer", "peers"]
OPEN_AS: tuple[str, ...] = get_args(OpenAs)
# What decoding one of many images gives: its pixels, or why there are none.
Decoded = Image.Image | ValueError | OSError
_ON_DEVICE = 128  # documents that are decoded together where that runs on JAX's devices


def rgb(data: bytes, open_as: OpenAs) -> Image.Image:
    """The pixels of an image file, in mode RGB. Raises ImageError if it does not decode."""
    image = open_image(data)
    return image.convert("RGB") if open_as == "peers" else normalise(image, "RGB")


class Images(abc.ABC):
    """Images by number, 0 to len - 1.

    Attributes:
      name: path or spec of the images.
      metadata: everything besides the bytes that determines the pixels, as JSON values.
      rejected: (name, reason) of files that could not be listed as images.
      together: how many images `decode_batch` is best given at once.
    """

    def __init__(self, name: str, metadata: dict[str, Any] | None = None):
        self.name = name
        self.metadata = metadata or {}
        self.rejected: list[tuple[str, str]] = []
        self.together = 1

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def key(self, number: int) -> str:
        """The name of an image, unique in the set."""

    def label(self, number: int) -> int:
        """The class of an image, an index into `label_names`; -1 if it has none."""
        return -1

    @property
    def label_names(self) -> Sequence[str]:
        """Names of the classes; empty if there are none or they have no names."""
        return ()

    @abc.abstractmethod
    def read(self, number: int) -> bytes:
        """An image as it is stored. Raises ValueError or OSError if it cannot be read."""

    def decode(self, number: int, data: bytes) -> Image.Image:
        """The pixels of an image that was read, in mode RGB. Raises ValueError (ImageError)."""
        return rgb(data, "viewer")

    def decode_batch(self, numbers: Sequence[int], data: Sequence[bytes]) -> list[Decoded]:
        """`decode` of each image; the error in place of one that does not decode."""
        found: list[Decoded] = []
        for number, each in zip(numbers, data, strict=True):
            try:
                found.append(self.decode(number, each))
            except (ValueError, OSError) as error:
                found.append(error)
        return found

    @property
    def paths(self) -> tuple[str, ...]:
        """Local folders and files that hold the images, absolute."""
        return ()


class ImageFiles(Images):
    """Images that are stored as files, opened as `open_as` states: see `rgb`."""

    def __init__(self, name: str, open_as: OpenAs):
        super().__init__(name, {"open_as": open_as})
        self._open_as = open_as

    def decode(self, number: int, data: bytes) -> Image.Image:
        return rgb(data, self._open_as)


class SourceImages(ImageFiles):
    """The images of a source, see `data_pipelines.sources`."""

    def __init__(self, source: Source, open_as: OpenAs = "viewer"):
        super().__init__(source.spec, open_as)
        self._source = source
        self._items: Sequence[Item] = list(source.items())
        self.rejected = [(reject.key, reject.reason) for reject in source.rejects]

    def __len__(self) -> int:
        return len(self._items)

    def key(self, number: int) -> str:
        return self._items[number].key

    def label(self, number: int) -> int:
        return self._items[number].label

    @property
    def label_names(self) -> Sequence[str]:
        return self._source.label_names

    def read(self, number: int) -> bytes:
        return self._source.read(self._items[number].locator)

    @property
    def paths(self) -> tuple[str, ...]:
        kind, _, argument = self.name.partition(":")
        if kind == "folder" and "://" not in argument:
            return (os.path.realpath(os.path.expanduser(argument)),)
        return tuple(map(os.path.realpath, glob.glob(argument))) if kind != "tfds" else ()


class RecordImages(ImageFiles):
    """Image files as the records of ArrayRecord files."""

    def __init__(self, pattern: str, open_as: OpenAs = "viewer"):
        super().__init__(f"records:{pattern}", open_as)
        self._files = sorted(path for path in glob.glob(pattern) if os.path.isfile(path))
        if not self._files:
            raise ValueError(f"{pattern!r} matches no file; expected .array_record files")
        self._readers = [_open_records(path) for path in self._files]
        counts = [reader.num_records() for reader in self._readers]
        self._starts = np.concatenate([[0], np.cumsum(counts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def key(self, number: int) -> str:
        file, record = self._locate(number)
        return f"{os.path.basename(self._files[file])}#{record}"

    def read(self, number: int) -> bytes:
        file, record = self._locate(number)
        return self._readers[file].read([record])[0]

    def _locate(self, number: int) -> tuple[int, int]:
        file = int(np.searchsorted(self._starts, number, side="right")) - 1
        return file, number - int(self._starts[file])

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(map(os.path.realpath, self._files))


def _open_records(path: str) -> Any:
    try:
        return open_records(path)
    except ShardError as error:  # of a user's file, which is no shard
        raise ValueError(f"{error}; expected an ArrayRecord file") from error


class ArrayImages(Images):
    """The images of a sample batch: the array arr_0 of an .npz file, uint8 [N, height, width, 3].

    They are read one at a time, see `npz.Rows`. An array arr_1 of N integers gives their classes.

    Args:
      path: of the file.

    Raises:
      NpzError: the file is damaged, or arr_0 is missing or holds Python objects.
      ValueError: the array holds no RGB images of 8 bits.
    """

    def __init__(self, path: str):
        super().__init__(path)
        self._rows = npz.Rows(path, ARRAY)
        shape, dtype = self._rows.shape, self._rows.dtype
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape[1:]:
            raise ValueError(
                f"{ARRAY} in {path} is {dtype} {list(shape)}, expected images: uint8 "
                "[N, height, width, 3]"
            )
        self._labels: np.ndarray | None = None
        found = npz.headers(path).get(LABELS)
        if found and found.shape == shape[:1] and found.dtype.kind in "iu":
            self._labels = npz.load(path, [LABELS])[LABELS]

    def __len__(self) -> int:
        return len(self._rows)

    def key(self, number: int) -> str:
        return f"{number:06d}"

    def label(self, number: int) -> int:
        return -1 if self._labels is None else int(self._labels[number])

    def read(self, number: int) -> bytes:
        return self._rows.read(number)

    def decode(self, number: int, data: bytes) -> Image.Image:
        return Image.fromarray(np.frombuffer(data, np.uint8).reshape(self._rows.shape[1:]))

    @property
    def paths(self) -> tuple[str, ...]:
        return (os.path.realpath(self.name),) if "://" not in self.name else ()


class ShardImages(Images):
    """The documents of prepared shards, decoded: images after the codec.

    Args:
      folders: of shards, as a run may name several. Keys of several have their folder in front.
      split: "train" or "eval".
    """

    def __init__(self, folders: Sequence[str], split: str = "eval"):
        super().__init__(f"shards:{','.join(folders)}:{split}")
        self._shards = JoinedShards(folders, split)
        self._representation = self._shards.representation
        self.metadata = {"decoded_from": self._representation.fingerprint}
        self.together = decoded_together(self._representation)

    def __len__(self) -> int:
        return len(self._shards)

    def key(self, number: int) -> str:
        part, inside = self._shards.locate(number)
        folder = f"{part.folder}/" if len(self._shards.parts) > 1 else ""
        copy = part.copy(inside)
        return folder + part.key(inside) + (f"#{copy}" if copy else "")

    def label(self, number: int) -> int:
        part, inside = self._shards.locate(number)
        return int(part.labels[inside])

    @property
    def label_names(self) -> Sequence[str]:
        return self._shards.parts[0].label_names

    def require(self, representation: Representation) -> None:
        """Raises MismatchError for shards of another representation."""
        for part in self._shards.parts:
            part.require(representation)

    def tokens(self, numbers: Sequence[int]) -> list[np.ndarray]:
        """Tokens of documents by ascending numbers, integer [n] each."""
        found = self._shards.read(np.asarray(numbers))
        return [tokens for tokens in found if tokens is not None]  # damage raises DamagedShard

    def codec_bytes(self, number: int) -> int:
        """Bytes that the codec writes for a document; 0 if there is no codec."""
        part, inside = self._shards.locate(number)
        return int(part.codec_bytes[inside])

    def read(self, number: int) -> bytes:
        return self.tokens([number])[0].astype("<u4").tobytes()

    def decode(self, number: int, data: bytes) -> Image.Image:
        return normalise(self._representation.decode(np.frombuffer(data, "<u4")), "RGB")

    def decode_batch(self, numbers: Sequence[int], data: Sequence[bytes]) -> list[Decoded]:
        return _decode_documents(self._representation, [np.frombuffer(d, "<u4") for d in data])

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(os.path.realpath(part.folder) for part in self._shards.parts)


class FittedImages(Images):
    """Images cropped, resized and converted by a representation; optionally through its codec.

    Args:
      images: real images.
      representation: of images.
      coded: also encode and decode them, as a perfect model would reproduce them.
    """

    def __init__(self, images: Images, representation: Representation, *, coded: bool):
        require_images(representation)
        super().__init__(f"{images.name}{', through the codec' if coded else ''}")
        self.metadata = {
            **images.metadata,
            "fitted_to": representation.fingerprint,
            "coded": coded,
        }
        self.rejected = images.rejected
        self._images, self._representation, self._coded = images, representation, coded
        self.together = decoded_together(representation) if coded else 1

    def __len__(self) -> int:
        return len(self._images)

    def key(self, number: int) -> str:
        return self._images.key(number)

    def label(self, number: int) -> int:
        return self._images.label(number)

    @property
    def label_names(self) -> Sequence[str]:
        return self._images.label_names

    def read(self, number: int) -> bytes:
        return self._images.read(number)

    def decode(self, number: int, data: bytes) -> Image.Image:
        image = self._images.decode(number, data)
        if self._coded:
            image = self._representation.decode(self._representation.encode(image))
        else:
            image = self._representation.fit(image)
        return normalise(image, "RGB")

    def decode_batch(self, numbers: Sequence[int], data: Sequence[bytes]) -> list[Decoded]:
        if self.together == 1:
            return super().decode_batch(numbers, data)
        found = self._images.decode_batch(numbers, data)
        readable = [n for n, image in enumerate(found) if isinstance(image, Image.Image)]
        documents = self._representation.encode_batch([found[n] for n in readable])
        coded = _decode_documents(self._representation, documents)
        for n, image in zip(readable, coded, strict=True):
            found[n] = image
        return found

    @property
    def paths(self) -> tuple[str, ...]:
        return self._images.paths


def decoded_together(representation: Representation) -> int:
    """`Images.together` of documents: many where a device decodes them, in batches of one size."""
    return _ON_DEVICE if representation.on_device else 1


def _decode_documents(
    representation: Representation, documents: Sequence[np.ndarray]
) -> list[Decoded]:
    """Documents as images in mode RGB; the error in place of one that does not decode."""
    return [
        ValueError(representation.validate(tokens).error)
        if image is None
        else normalise(image, "RGB")
        for tokens, image in zip(documents, representation.decode_batch(documents), strict=True)
    ]


def require_images(representation: Representation) -> None:
    """Raises ValueError for a representation of clips."""
    if representation.frames > 1:
        raise ValueError(
            f"representation {representation.name!r} is of clips of {representation.frames} "
            "frames; expected one of images: evals.video evaluates generated clips, "
            "evals.likelihood and evals.compression evaluate a model of clips"
        )


def open_images(where: str, open_as: OpenAs = "viewer") -> Images:
    """Opens the images at a path or of a spec.

    Args:
      where: a folder (of image files, of prepared shards, of .array_record files), a tar, an
        .array_record, .parquet or .npz file, or one of these by kind: `digits`, `folder:PATH`,
        `tar:GLOB`, `tfds:NAME[/CONFIG][:SPLIT]`, `parquet:GLOB`, `records:GLOB` (image files in
        ArrayRecord), `npz:PATH` (a sample batch, see `ArrayImages`), `shards:PATH[,PATH][:SPLIT]`
        (prepared shards, by default the split eval).
      open_as: how image files become pixels, see `OpenAs`.

    Raises:
      ValueError, FileNotFoundError: there are no images.
    """
    kind, _, argument = where.partition(":")
    if kind not in _KINDS:
        kind, argument = _kind_of(where), where
    if kind == "shards":
        folders, _, split = argument.rpartition(":")
        # Not a split: the end of an address such as gs://bucket/shards, or of a folder's own name.
        if not folders or "/" in split or epath.Path(argument).is_dir():
            folders, split = argument, "eval"
        return ShardImages(shard_folders(folders), split)
    if kind == "records":
        return RecordImages(argument, open_as)
    if kind == "npz":
        return ArrayImages(argument)
    return SourceImages(open_source(f"{kind}:{argument}" if argument else kind), open_as)


def _kind_of(where: str) -> str:
    """The kind of the images at a path. Raises ValueError if there are none."""
    path = epath.Path(os.path.expanduser(where) if "://" not in where else where)
    if path.is_dir():
        if (path / MANIFEST).is_file():
            return "shards"
        return "folder"
    if where.endswith(_RECORDS):
        return "records"
    if where.endswith((".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")):
        return "tar"
    if where.endswith((".parquet", ".npz")):
        return where.rpartition(".")[2]
    raise ValueError(
        f"there are no images at {where!r}; expected a folder, a tar, an .array_record, .parquet "
        f"or .npz file, or one of {', '.join(_KINDS)} with a colon"
    )
