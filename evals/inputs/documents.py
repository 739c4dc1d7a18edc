"""Real images as documents of a model: read from prepared shards, or encoded here.

`evals.codelength` computes their likelihoods, `evals.prompting` cuts prompts from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.media.images import normalise
from data_pipelines.representations.base import Representation
from evals.inputs.images import (
    Images,
    ShardImages,
    decoded_together,
    open_images,
    require_images,
)

_READ = 256  # documents read from shards at once


class Document(NamedTuple):
    """One image as tokens of the model.

    Attributes:
      key: its name.
      label: its class; -1 for none.
      tokens: integer [n], without start and end.
      codec_bytes: bytes that the codec writes for it; 0 if there is no codec.
      pixels: width times height of the encoded image; 0 if unknown.
      squared_error: mean squared error of the codec over samples of 0 to 255; NaN if unknown, as
        for shards, which do not hold the original images.
    """

    key: str
    label: int
    tokens: np.ndarray
    codec_bytes: int = 0
    pixels: int = 0
    squared_error: float = float("nan")


class Documents:
    """The documents of a set of images, or of a random subset.

    Args:
      where: a path or spec, see `images.open_images`. Shards must be of this representation. Files
        that the representation could have written are used unchanged, others are decoded and
        encoded.
      representation: of the model.
      num: number of documents; 0 for all.
      seed: of the random subset.

    Attributes:
      name: path or spec of the images.
      num, seed: of the random subset.
      rejected: (name, reason) of unreadable images, of the latest iteration.

    Raises:
      ValueError (MismatchError): no images, or shards of another representation.
    """

    def __init__(self, where: str, representation: Representation, num: int = 0, seed: int = 0):
        self._images: Images = open_images(where)
        self.num, self.seed = num, seed
        self._representation = representation
        self.name = self._images.name
        self.rejected: list[tuple[str, str]] = []
        if isinstance(self._images, ShardImages):
            self._images.require(representation)
        else:
            require_images(representation)
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
    def num_classes(self) -> int:
        """Number of classes of the labels; 0 if there are none."""
        return len(self._images.label_names)

    @property
    def metadata(self) -> dict[str, Any]:
        """Identifies the images in a report, as JSON values."""
        return {"from": self.name, **self._images.metadata}

    def __iter__(self) -> Iterator[Document]:
        """Iterates over the documents, each time from the start."""
        self.rejected = list(self._images.rejected)
        if isinstance(self._images, ShardImages):
            return self._stored(self._images)
        return self._encoded()

    def _stored(self, images: ShardImages) -> Iterator[Document]:
        for start in range(0, len(self), _READ):
            numbers = self._numbers[start : start + _READ]
            for number, tokens in zip(numbers, images.tokens(numbers), strict=True):
                size = self._representation.fixed_size or (0, 0)
                key, label = images.key(number), images.label(number)
                codec_bytes = images.codec_bytes(number)
                yield Document(key, label, tokens, codec_bytes, size[0] * size[1])

    def _encoded(self) -> Iterator[Document]:
        together = decoded_together(self._representation)
        for start in range(0, len(self), together):
            yield from self._encode(self._numbers[start : start + together])

    def _encode(self, numbers: Sequence[int]) -> list[Document]:
        """The documents of some images, encoded together; what cannot be one is rejected."""
        found: dict[int, Document] = {}
        fitted: dict[int, Any] = {}
        for number in numbers:
            key, label = self._images.key(number), self._images.label(number)
            try:
                data = self._images.read(number)
                if (document := self._unchanged(key, label, data)) is not None:
                    found[number] = document
                else:
                    image = self._images.decode(number, data)
                    fitted[number] = self._representation.fit(image)
            except (ValueError, OSError) as error:  # missing, damaged, or not an image
                self._reject(number, error)
        try:
            encoded = self._representation.encode_batch(list(fitted.values()))
        except ValueError as error:
            for number in fitted:
                self._reject(number, error)
        else:
            decoded = self._representation.decode_batch(encoded)
            for number, tokens, image in zip(fitted, encoded, decoded, strict=True):
                found[number] = self._document(number, tokens, fitted[number], image)
        return [found[number] for number in numbers if number in found]

    def _reject(self, number: int, error: Exception) -> None:
        self.rejected.append((self._images.key(number), str(error) or type(error).__name__))

    def _unchanged(self, key: str, label: int, file: bytes) -> Document | None:
        """The tokens of a file that the representation could have written; None for others."""
        try:
            tokens = self._representation.from_bytes(file)
        except ValueError:  # another header, or a representation without files
            return None
        if not self._representation.validate(tokens).valid:
            return None
        image = self._representation.decode(tokens)
        codec_bytes = self._representation.codec_bytes(tokens)
        return Document(key, label, tokens, codec_bytes, image.width * image.height, 0.0)

    def _document(self, number: int, tokens: np.ndarray, fitted: Any, decoded: Any) -> Document:
        """The document of an image; `decoded` is what its tokens show."""
        decoded = normalise(decoded, fitted.mode)
        difference = np.asarray(fitted, np.float64) - np.asarray(decoded, np.float64)
        return Document(
            self._images.key(number),
            self._images.label(number),
            tokens,
            self._representation.codec_bytes(tokens),
            fitted.width * fitted.height,
            float(np.square(difference).mean()),
        )
