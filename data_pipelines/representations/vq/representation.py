"""The VQ representation: images as the codes of a learned tokenizer, row by row.

    weights                             tokens per image            codes
    a tokenizer of `train_tokenizer`    (size / factor) squared     as trained

The tokenizer is a convolutional encoder, a quantiser and a decoder (`network.py`), trained by
`python -m jpeglm_jax.train_tokenizer`. Its file of weights is an artefact of the representation:
saved with it, and identified by its SHA-256 in `to_config`. Encoding and decoding run on JAX's
devices, in batches (`codec.py`).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import PIL
from etils import epath
from PIL import Image

from data_pipelines.media import images
from data_pipelines.representations.fixed_length import FixedLengthRepresentation
from data_pipelines.representations.vq import weights as tokenizer_file
from data_pipelines.representations.vq.config import TokenizerConfig
from data_pipelines.representations.vq.weights import TOKENIZER_FILE, TokenizerError

if TYPE_CHECKING:  # imports JAX
    from data_pipelines.representations.vq.codec import Codec

_TRAIN = "python -m jpeglm_jax.train_tokenizer --config=configs/vq.py:tokenizer_NAME"
_UNKNOWN = 128  # samples that a prompt does not hold


@dataclasses.dataclass(frozen=True)
class VqRepresentation(FixedLengthRepresentation):
    """Images as the codes of a tokenizer, in raster order.

    Every document has `length` tokens. Codes are the ids 0 to num_codes - 1.

    Attributes:
      size: side of the square that images are cropped and resized to.
      mode: "RGB" or "L" (grey).
      weights: the tokenizer's file, see `weights.pack`. Empty where only the other options are
        compared; nothing can be encoded then.
      num_labels: label tokens.

    Raises:
      TokenizerError (a ValueError): no file of a tokenizer, or one of other images.
    """

    size: int = 32
    mode: images.Mode = "RGB"  # type: ignore[assignment]
    weights: bytes = dataclasses.field(default=b"", repr=False)
    num_labels: int = 0

    name: ClassVar[str] = "vq"
    content: ClassVar[str] = "code"
    prepared_options: ClassVar[tuple[str, ...]] = ("num_labels", "weights")
    on_device: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.weights:
            return
        found = self.tokenizer_config
        if (found.size, found.mode) != (self.size, self.mode):
            raise TokenizerError(
                f"the tokenizer was trained on {found.size} x {found.size} images of mode "
                f"{found.mode}, expected size {self.size} and mode {self.mode}; set size and mode "
                f"to the tokenizer's, or train another: {_TRAIN}"
            )

    # How it is made, stored and recognised

    @classmethod
    def from_options(cls, options: Mapping[str, Any], num_labels: int) -> Self:
        """See `Representation.from_options`.

        Args:
          options: the fields; `weights` is the folder of a finished `train_tokenizer`, or its file.
          num_labels: label tokens.
        """
        options = dict(options)
        if "weights" in options:
            options["weights"] = read_weights(options["weights"])
        return super().from_options(options, num_labels)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], artifacts: Mapping[str, bytes]) -> Self:
        config = dict(config)
        if expected := config.get("weights"):
            data = artifacts.get(TOKENIZER_FILE)
            if data is None:
                raise TokenizerError(f"found no {TOKENIZER_FILE}, which the tokens need")
            found = hashlib.sha256(data).hexdigest()
            if found != expected["sha256"]:
                raise TokenizerError(
                    f"the {TOKENIZER_FILE} has SHA-256 {found}, expected {expected['sha256']}: use "
                    "the file that was saved with this representation"
                )
            config["weights"] = data
        else:
            config["weights"] = b""
        return super().from_config(config, artifacts)

    def to_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "size": self.size,
            "mode": self.mode,
            "weights": {"sha256": self._sha256} if self.weights else None,
            "num_labels": self.num_labels,
        }

    def to_options(self, folder: epath.PathLike) -> dict[str, Any]:
        weights = str(epath.Path(folder) / TOKENIZER_FILE)
        return super().to_options(folder) | {"weights": weights}

    @functools.cached_property
    def _sha256(self) -> str:
        return hashlib.sha256(self.weights).hexdigest()

    @property
    def artifacts(self) -> dict[str, bytes]:
        return {TOKENIZER_FILE: self.weights} if self.weights else {}

    @property
    def encoder_versions(self) -> dict[str, str]:
        """Pillow, which resizes; JAX and the device, whose rounding may change a code."""
        import jax

        device = self._codec.device_kind
        return {"pillow": PIL.__version__, "jax": jax.__version__, "device": device}

    @functools.cached_property
    def tokenizer_config(self) -> TokenizerConfig:
        """The shape of the tokenizer. Raises TokenizerError if there is none."""
        return tokenizer_file.unpack(self._trained)[0]

    @property
    def _trained(self) -> bytes:
        if not self.weights:
            raise TokenizerError(f"there is no tokenizer to encode with; train one: {_TRAIN}")
        return self.weights

    @property
    def _codec(self) -> Codec:
        from data_pipelines.representations.vq.codec import codec_of

        return codec_of(self._trained)

    # Shape

    @property
    def num_codes(self) -> int:
        return self.tokenizer_config.num_codes

    @property
    def length(self) -> int:
        return self.tokenizer_config.num_positions

    @property
    def rows(self) -> int:
        return self.tokenizer_config.grid

    @property
    def fixed_size(self) -> tuple[int, int]:
        """(width, height) of every image."""
        return (self.size, self.size)

    # Media

    def fit(self, media: Image.Image) -> Image.Image:
        """The image that is encoded, of `mode` and `size`; see `images.fit`."""
        return images.fit(media, self.mode, self.fixed_size)

    def encode(self, media: Image.Image) -> np.ndarray:
        """Image of any mode and size -> tokens, `token_dtype` [length].

        Raises ValueError for an image without pixels.
        """
        return self.encode_batch([media])[0]

    def encode_batch(self, media: Sequence[Image.Image]) -> list[np.ndarray]:
        """`encode` of each image, many at once on the devices."""
        if not media:
            return []
        pixels = np.stack([np.asarray(self.fit(each)) for each in media])
        codes = self._codec.encode(pixels.reshape(*pixels.shape[:3], -1))
        return list(codes.astype(self.token_dtype))

    def decode(self, tokens: np.ndarray) -> Image.Image:
        """Tokens, integer [n] -> image, of the tokens before the first that stands for no code.

        In place of those that are missing the decoder gets zeros; surplus ones are ignored. See
        `validate`.

        Raises ValueError if nothing can be decoded.
        """
        image = self.decode_batch([tokens])[0]
        if image is None:
            raise ValueError(self.validate(tokens).error)
        return image

    def decode_batch(self, documents: Sequence[np.ndarray]) -> list[Image.Image | None]:
        """`decode` of each document; None for one of which nothing can be decoded."""
        contents = [self.content_of(tokens) for tokens in documents]
        codes = np.full((len(contents), self.length), -1, np.int32)
        for row, content in zip(codes, contents, strict=True):
            row[: len(content)] = content
        shown = np.array([len(content) > 0 for content in contents], bool)
        if not shown.any():
            return [None] * len(contents)
        decoded = iter(self._codec.decode(codes[shown]))
        return [self._image(next(decoded)) if each else None for each in shown]

    def decode_prefix(self, tokens: np.ndarray) -> Image.Image:
        """A prompt -> the pixels of its whole rows of codes, above grey."""
        pixels = np.asarray(self.decode(tokens)).copy()
        shape = self.tokenizer_config
        pixels[len(self.content_of(tokens)) // shape.grid * shape.factor :] = _UNKNOWN
        return Image.fromarray(pixels)

    def _image(self, pixels: np.ndarray) -> Image.Image:
        return Image.fromarray(pixels.squeeze(-1) if self.mode == "L" else pixels)


def read_weights(where: epath.PathLike) -> bytes:
    """The bytes of a tokenizer's file.

    Args:
      where: the folder of a `train_tokenizer` that has finished, or the file itself; local or
        remote.

    Raises:
      TokenizerError: there is none.
    """
    if not str(where):
        raise TokenizerError(
            f"representation.weights is empty; expected the folder of a trained tokenizer: {_TRAIN}"
        )
    path = epath.Path(where)
    if path.is_dir():
        path = path / TOKENIZER_FILE
    if not path.is_file():
        raise TokenizerError(
            f"representation.weights: there is no {path}; expected the folder of a train_tokenizer "
            f"that has finished, or its {TOKENIZER_FILE}: {_TRAIN}"
        )
    data = path.read_bytes()
    try:
        tokenizer_file.unpack(data)
    except TokenizerError as error:
        raise TokenizerError(f"representation.weights: {path}: {error}") from error
    return data
