"""The pixel representation: images as colours in raster order, without a codec.

    clusters   a pixel is                                          tokens per image
    512        the nearest of 512 colours (ImageGPT)               width x height
    0          its bytes, red, green and blue, or one of grey      width x height x channels

With clusters=0 nothing is lost, and likelihoods are reported in bits per dimension. Clusters are
trained by preparation (`clusters.train`), or loaded from a file that another preparation trained.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import PIL
from etils import epath
from PIL import Image

from data_pipelines.media import images
from data_pipelines.representations.fixed_length import FixedLengthRepresentation
from data_pipelines.representations.pixel import clusters as colour_clusters
from data_pipelines.representations.pixel.clusters import CLUSTERS_FILE, Centres

MAX_SIDE = 65_500  # libjpeg's limit, so that every representation of images has the same
_MAX_CLUSTERS = {"RGB": 1 << 16, "L": 256}
_CHANNELS = {"RGB": 3, "L": 1}
_FILL = 128  # samples that a document does not hold
_SAMPLED_PIXELS = 1024  # of one image, to train clusters on


@dataclasses.dataclass(frozen=True)
class PixelRepresentation(FixedLengthRepresentation):
    """Images as the colours of their pixels, row by row.

    Attributes:
      size: side of the square that images are cropped and resized to; or (width, height). The
        largest centred crop of that shape is used.
      mode: "RGB" or "L" (grey).
      clusters: number of colour clusters; 0 for the bytes of the pixels.
      centres: of the clusters; None if they are not trained yet.
      num_labels: label tokens.

    Raises:
      ValueError: an option out of its range, or centres of another mode or number.
    """

    size: int | tuple[int, int] = 32
    mode: images.Mode = "RGB"  # type: ignore[assignment]
    clusters: int = 512
    centres: Centres | None = None
    num_labels: int = 0

    name: ClassVar[str] = "pixel"
    content: ClassVar[str] = "colour"
    suffix: ClassVar[str] = ".png"
    prepared_options: ClassVar[tuple[str, ...]] = ("num_labels", "centres")

    def __post_init__(self) -> None:
        # Options with the same meaning become equal values, with one fingerprint.
        if isinstance(self.size, list):
            object.__setattr__(self, "size", tuple(self.size))
        if isinstance(self.size, tuple) and len(self.size) == 2 and self.size[0] == self.size[1]:
            object.__setattr__(self, "size", self.size[0])
        sides = self.size if isinstance(self.size, tuple) else (self.size, self.size)
        if len(sides) != 2 or not all(_is_count(side, 1, MAX_SIDE) for side in sides):
            raise ValueError(
                f"found size {self.size!r}, expected a side or (width, height) in pixels, each "
                f"from 1 to {MAX_SIDE}"
            )
        if self.mode not in _CHANNELS:
            raise ValueError(f'found mode {self.mode!r}, expected "RGB" or "L"')
        most = _MAX_CLUSTERS[self.mode]
        if self.clusters != 0 and not _is_count(self.clusters, 2, most):
            raise ValueError(
                f"found clusters={self.clusters!r}, expected 2 to {most:,} for mode "
                f'"{self.mode}", or 0 for the bytes of the pixels'
            )
        if self.centres is not None:
            self._check_centres(self.centres.colours)

    def _check_centres(self, colours: np.ndarray) -> None:
        if not self.clusters:
            raise ValueError("found centres, but clusters=0 has none; set clusters to their number")
        if colours.shape[1] != self.channels:
            trained = "RGB" if colours.shape[1] == 3 else "L"
            raise ValueError(
                f'the colour clusters were trained for mode "{trained}", expected "{self.mode}"; '
                f"set mode to {trained}, or train others"
            )
        if len(colours) != self.clusters:
            raise ValueError(
                f"found {len(colours)} colour clusters, expected clusters={self.clusters}; set "
                "clusters to their number, or train others"
            )

    # How it is made, stored and recognised

    @classmethod
    def from_options(cls, options: Mapping[str, Any], num_labels: int) -> Self:
        """See `Representation.from_options`.

        Args:
          options: the fields, and for `centres` the path of a clusters.npy; "": not trained yet.
          num_labels: label tokens.
        """
        options = dict(options)
        if where := options.pop("centres", ""):
            options["centres"] = _read_centres(where)
        return super().from_options(options, num_labels)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], artifacts: Mapping[str, bytes]) -> Self:
        config = dict(config)
        if stored := config.pop("centres", None):
            if CLUSTERS_FILE not in artifacts:
                raise ValueError(f"found no {CLUSTERS_FILE}, which the tokens need")
            centres = Centres(artifacts[CLUSTERS_FILE])
            if centres.sha256 != stored["sha256"]:
                raise ValueError(
                    f"the {CLUSTERS_FILE} has SHA-256 {centres.sha256}, expected "
                    f"{stored['sha256']}: use the file that was saved with this representation"
                )
            config["centres"] = centres
        return super().from_config(config, artifacts)

    def to_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "size": list(self.size) if isinstance(self.size, tuple) else self.size,
            "mode": self.mode,
            "clusters": self.clusters,
            "centres": {"sha256": self.centres.sha256} if self.centres else None,
            "num_labels": self.num_labels,
        }

    def to_options(self, folder: epath.PathLike) -> dict[str, Any]:
        centres = str(epath.Path(folder) / CLUSTERS_FILE) if self.centres else ""
        return super().to_options(folder) | {"centres": centres}

    @property
    def artifacts(self) -> dict[str, bytes]:
        return {CLUSTERS_FILE: self.centres.file} if self.centres else {}

    @property
    def encoder_versions(self) -> dict[str, str]:
        """Pillow, which crops and resizes."""
        return {"pillow": PIL.__version__}

    # Training of the clusters

    @property
    def needs_training(self) -> bool:
        return self.clusters > 0 and self.centres is None

    def training_sample(self, media: Image.Image) -> np.ndarray:
        """At most 1,024 pixels of an image, sampled at random, uint8 [n, channels]."""
        pixels = self._pixels_of(media)
        if len(pixels) <= _SAMPLED_PIXELS:
            return pixels
        rng = np.random.default_rng(zlib.crc32(pixels.tobytes()))
        return pixels[rng.choice(len(pixels), _SAMPLED_PIXELS, replace=False)]

    def trained(
        self, samples: Sequence[np.ndarray], *, vocab_size: int = 0, kind: str = "", seed: int = 0
    ) -> Self:
        """The representation with clusters trained on samples; see `clusters.train`."""
        if vocab_size or kind:
            raise ValueError(
                "pixels have no tokenizer but colour clusters, whose number is the option "
                "clusters: set train_tokenizer to 0"
            )
        if not self.needs_training:
            raise ValueError(
                "there are no colour clusters to train: set clusters to their number and centres "
                'to ""'
            )
        centres = colour_clusters.train(np.concatenate(samples), self.clusters, seed)
        return dataclasses.replace(self, centres=centres)

    # Shape

    @property
    def num_codes(self) -> int:
        return self.clusters or 256

    @property
    def channels(self) -> int:
        """Samples of a pixel."""
        return _CHANNELS[self.mode]

    @property
    def fixed_size(self) -> tuple[int, int]:
        """(width, height) of every image."""
        return self.size if isinstance(self.size, tuple) else (self.size, self.size)

    @property
    def num_dimensions(self) -> int:
        width, height = self.fixed_size
        return 0 if self.clusters else width * height * self.channels

    @property
    def length(self) -> int:
        width, height = self.fixed_size
        return width * height * self.tokens_per_unit

    @property
    def rows(self) -> int:
        return self.fixed_size[1]

    @property
    def tokens_per_unit(self) -> int:
        """Of a pixel."""
        return 1 if self.clusters else self.channels

    # Media and files

    def fit(self, media: Image.Image) -> Image.Image:
        """The image that is encoded, of `mode` and `size`; see `images.fit`."""
        return images.fit(media, self.mode, self.fixed_size)

    def encode(self, media: Image.Image) -> np.ndarray:
        """Image of any mode and size -> tokens, `token_dtype` [length].

        Raises ValueError for an image without pixels, and if the clusters are not trained.
        """
        return self._encoded(self._pixels_of(media))

    def _pixels_of(self, media: Image.Image) -> np.ndarray:
        """uint8 [pixels, channels]."""
        return np.asarray(self.fit(media)).reshape(-1, self.channels)

    def _encoded(self, pixels: np.ndarray) -> np.ndarray:
        codes = self._trained_centres.nearest(pixels) if self.clusters else pixels.reshape(-1)
        return codes.astype(self.token_dtype)

    @property
    def _trained_centres(self) -> Centres:
        if self.centres is None:
            raise ValueError(
                "the colour clusters are not trained; prepare shards, which trains them, or set "
                f"centres to a {CLUSTERS_FILE}"
            )
        return self.centres

    def decode(self, tokens: np.ndarray) -> Image.Image:
        """Tokens, integer [n] -> image, of the tokens before the first that stands for no colour.

        What a short document does not hold is grey; surplus tokens are ignored. See `validate`.

        Raises ValueError if nothing can be decoded.
        """
        content = self.content_of(tokens)
        if not len(content):
            raise ValueError(self.validate(tokens).error)
        return self._images([content])[0]

    def decode_batch(self, documents: Sequence[np.ndarray]) -> list[Image.Image | None]:
        """`decode` of each document; None for one of which nothing can be decoded."""
        contents = [self.content_of(tokens) for tokens in documents]
        decoded = iter(self._images([content for content in contents if len(content)]))
        return [next(decoded) if len(content) else None for content in contents]

    def _images(self, contents: Sequence[np.ndarray]) -> list[Image.Image]:
        """Tokens of content, at most `length` of each image -> images; the rest is grey."""
        codes = np.full((len(contents), self.length), self.num_codes, np.int64)
        for row, content in zip(codes, contents, strict=True):
            row[: len(content)] = content
        width, height = self.fixed_size
        samples = self._table[codes].reshape(len(contents), height, width, self.channels)
        return [
            Image.fromarray(image.squeeze(-1) if self.mode == "L" else image) for image in samples
        ]

    @functools.cached_property
    def _table(self) -> np.ndarray:
        """The samples of each code, and of `num_codes` for what is missing, uint8."""
        if self.clusters:
            colours = self._trained_centres.colours
        else:
            colours = np.arange(256, dtype=np.uint8)[:, None]
        return np.concatenate([colours, np.full((1, colours.shape[1]), _FILL, np.uint8)])

    def to_bytes(self, tokens: np.ndarray) -> bytes:
        """Tokens of a valid document -> a PNG file with the same pixels as `decode`.

        Raises ValueError for another document: a PNG file would not hold its damage.
        """
        validity = self.validate(tokens)
        if not validity.valid:
            raise ValueError(validity.error)
        file = io.BytesIO()
        self.decode(tokens).save(file, "PNG")
        return file.getvalue()

    def from_bytes(self, file: bytes) -> np.ndarray:
        """A PNG file of this size and mode -> tokens, `token_dtype` [length].

        Raises ValueError for another file, and for a colour that is no centre.
        """
        image = images.open_image(file)
        if (image.format, image.mode, image.size) != ("PNG", self.mode, self.fixed_size):
            raise ValueError(
                f"found a {image.format} file, mode {image.mode}, {image.width} x {image.height} "
                "pixels, expected PNG, {}, {} x {}; decode it and encode its pixels".format(
                    self.mode, *self.fixed_size
                )
            )
        pixels = self._pixels_of(image)
        tokens = self._encoded(pixels)
        if self.clusters and (self._table[tokens] != pixels).any():
            raise ValueError(
                "the file has a colour that is none of the clusters' centres; decode it and encode "
                "its pixels"
            )
        return tokens


def _is_count(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _read_centres(where: str) -> Centres:
    """Raises ValueError for a file that is missing or holds no centres."""
    path = epath.Path(where)
    if not path.is_file():
        raise ValueError(
            f"found centres={where!r}, which is no file; expected a {CLUSTERS_FILE} of prepared "
            'shards, or "" to train it'
        )
    try:
        return Centres(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
