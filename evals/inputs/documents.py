"""Real images as the documents a model is asked about: from prepared shards, or encoded here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.media.images import normalise
from data_pipelines.representations.base import Representation
from data_pipelines.shards.reader import Shards
from evals.inputs.images import Images, ShardImages, open_images

_READ = 256  # documents read from shards at once


class Document(NamedTuple):
    """One image in the model's own terms.

    Attributes:
      key: its name.
      label: its class; -1 for none.
      tokens: integer [n], without start and end.
      pixels: width times height of what was encoded; 0 if it is not known.
      squared_error: mean of what encoding lost, over pixels of 0 to 255; NaN if not known, as for
        what comes from shards, where the images are no longer there.
    """

    key: str
    label: int
    tokens: np.ndarray
    pixels: int = 0
    squared_error: float = float("nan")


class Documents:
    """The documents of a set of images, or so many of them at random.

    Args:
      where: see `images.open_images`. Shards must be of this representation. Files that are as the
        representation would write them are taken as they are, others are decoded and encoded.
      representation: the model's.
      num: how many; 0 for all.
      seed: chooses which.

    Attributes:
      name: where they are from.
      rejected: (name, reason) of what could not be read, as far as they have been gone through.

    Raises:
      ValueError (MismatchError): nothing to read, or shards of another representation.
    """

    def __init__(self, where: str, representation: Representation, num: int = 0, seed: int = 0):
        self._images: Images = open_images(where)
        self._representation = representation
        self.name = self._images.name
        self.rejected: list[tuple[str, str]] = []
        if isinstance(self._images, ShardImages):
            self._images.shards.require(representation)
        elif not hasattr(representation, "fit"):
            raise ValueError(f"representation {representation.name!r} is not one of images")
        if num < 0:
            raise ValueError(f"num is {num}; expected 1 or more, or 0 for all")
        total = len(self._images)
        if not total:
            raise ValueError(f"{self.name} holds no image")
        order = np.random.default_rng(seed).permutation(total)
        self._numbers: list[int] = np.sort(order[: num or total]).tolist()

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def labelled_as(self) -> int:
        """Number of classes that labels are out of; 0 if there are none."""
        return len(self._images.label_names)

    @property
    def about(self) -> dict[str, Any]:
        """What they are, for a report."""
        return {"from": self.name, **self._images.about}

    def __iter__(self) -> Iterator[Document]:
        """Goes through them, each time from the start."""
        self.rejected = list(self._images.set_aside)
        if isinstance(self._images, ShardImages):
            return self._stored(self._images.shards)
        return self._encoded()

    def _stored(self, shards: Shards) -> Iterator[Document]:
        for start in range(0, len(self), _READ):
            numbers = self._numbers[start : start + _READ]
            for number, tokens in zip(numbers, shards.read(numbers), strict=True):
                size = getattr(self._representation, "fixed_size", None) or (0, 0)
                key, label = self._images.key(number), self._images.label(number)
                yield Document(key, label, tokens, size[0] * size[1])

    def _encoded(self) -> Iterator[Document]:
        for number in self._numbers:
            key, label = self._images.key(number), self._images.label(number)
            try:
                data = self._images.read(number)
                yield self._taken(key, label, data) or self._made(key, label, number, data)
            except (ValueError, OSError) as error:  # missing, damaged, no image
                self.rejected.append((key, str(error) or type(error).__name__))

    def _taken(self, key: str, label: int, file: bytes) -> Document | None:
        """A file that is strictly what the representation writes, as it is."""
        try:
            tokens = self._representation.from_bytes(file)
        except (ValueError, AttributeError):  # another header, or media without files of its own
            return None
        if not self._representation.validate(tokens).valid:
            return None
        image = self._representation.decode(tokens)
        return Document(key, label, tokens, image.width * image.height, 0.0)

    def _made(self, key: str, label: int, number: int, file: bytes) -> Document:
        image = self._images.decode(number, file)
        tokens = self._representation.encode(image)
        fitted = self._representation.fit(image)  # type: ignore[attr-defined]
        shown = normalise(self._representation.decode(tokens), fitted.mode)
        difference = np.asarray(fitted, np.float64) - np.asarray(shown, np.float64)
        lost = float(np.square(difference).mean())
        return Document(key, label, tokens, fitted.width * fitted.height, lost)
