"""`tfds:NAME[/CONFIG][:VERSION][:SPLIT]`: a dataset that TensorFlow Datasets has prepared.

Reads the prepared files (ArrayRecord or parquet) without TensorFlow and without the dataset's own
code, and downloads nothing.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from PIL import Image

from data_pipelines.media import Kind
from data_pipelines.sources import files
from data_pipelines.sources.base import Item, Locator, Source, SourceError

_SPEC = re.compile(
    r"(?P<name>[^:/]+)(/(?P<config>[^:]+))?(:(?P<version>\d+\.\d+\.\d+))?"
    r"(:(?P<split>([^:\[\]]|\[[^\[\]]*\])+))?"  # Slices, as in train[10:20], contain colons.
)
_VIDEO_RATE = 25  # frames per second
_BATCH = 64  # records read at once while listing: fast, and little memory for large images


class TfdsSource(Source):
    """The images or videos of one split (by default "train"; slices, as "train[:10%]", too).

    The image is the feature "image", or the only image feature; the label is the feature "label",
    or the only ClassLabel. Keys are `NAME[/CONFIG]/VERSION/SPLIT/INDEX`. Listing a labelled split
    reads its records, which contain the labels, without decoding images. TFDS stores a video as
    encoded images without a frame rate: it is returned as a NUT file of the same images at 25
    frames per second. Datasets are looked up in $TFDS_DATA_DIR, or in the default folder of TFDS.
    """

    scheme = "tfds"
    label_advice = "the dataset has no feature 'label', and not exactly one ClassLabel"

    def __init__(self, argument: str, kind: Kind = "image") -> None:
        super().__init__(argument, kind)
        self._name, self._config, self._version, self._split = _parse(argument)
        builder = self._find()
        self._prefix = f"{builder.info.full_name}/{self._split}"
        features = builder.info.features
        tfds = _tfds()
        wanted = tfds.features.Image if kind == "image" else tfds.features.Video
        self._image = _only(features, wanted, kind)
        self._label = _only(features, tfds.features.ClassLabel, "label")
        if self._image is None:
            raise SourceError(
                f"{self.spec} has no {kind} among its features: {', '.join(sorted(features))}"
            )
        # Only one feature of an example is parsed at a time.
        self._image_only = tfds.features.FeaturesDict({self._image: features[self._image]})
        self._undecoded = {self._image: tfds.decode.SkipDecoding()}
        self._names: tuple[str, ...] = ()
        if self._label is not None:
            self._names = tuple(features[self._label].names)
            self._label_only = tfds.features.FeaturesDict({self._label: features[self._label]})
        self._data_dir = builder.data_path
        self._records = self._open(builder)

    @property
    def label_names(self) -> tuple[str, ...]:
        return self._names

    def _list(self) -> Iterator[Item]:
        for start in range(0, len(self._records), _BATCH):
            indices = range(start, min(start + _BATCH, len(self._records)))
            for index, label in zip(indices, self._labels(indices), strict=True):
                key = f"{self._prefix}/{index:08d}"
                if isinstance(label, str):
                    self._reject(key, label)
                else:
                    yield Item(key, index, label)

    def read(self, locator: Locator) -> bytes:
        if not isinstance(locator, int) or not 0 <= locator < len(self._records):
            raise SourceError(
                f"{self.spec} has no record {locator!r}, expected 0 to {len(self._records) - 1}"
            )
        try:
            example = self._image_only.deserialize_example_np(
                self._records[locator], decoders=self._undecoded
            )
            image = example[self._image]
        except _damage() as error:
            self._raise_if_gone(error)
            raise SourceError(
                f"record {locator} of {self.spec} cannot be read: {files.why(error)}"
            ) from error
        if not len(image):
            raise SourceError(f"record {locator} of {self.spec} holds no {self.kind}")
        return image if self.kind == "image" else frames_to_nut([bytes(frame) for frame in image])

    def _raise_if_gone(self, error: Exception) -> None:
        """Raises StorageUnavailable if the folder of the dataset is gone."""
        files.raise_outage(error, str(self._data_dir))
        if not self._data_dir.exists():
            raise files.unavailable(self.spec, f"there is no folder {self._data_dir}") from error

    def _labels(self, indices: range) -> list[int | str]:
        """The label of each record, or the reason (str) if it cannot be read."""
        if self._label is None:
            return [-1] * len(indices)
        try:
            return [self._parse_label(record) for record in self._records.__getitems__(indices)]
        except _damage():
            return [self._label_or_reason(index) for index in indices]

    def _label_or_reason(self, index: int) -> int | str:
        try:
            return self._parse_label(self._records[index])
        except _damage() as error:
            return f"record cannot be read: {files.why(error)}"

    def _parse_label(self, record: bytes) -> int:
        label = int(self._label_only.deserialize_example_np(record)[self._label])
        if not -1 <= label < len(self._names):
            raise ValueError(f"its label is {label}, expected below {len(self._names)}")
        return label

    def _find(self) -> Any:
        options = {"config": self._config, "version": self._version}
        data_dir = os.environ.get("TFDS_DATA_DIR")
        try:
            return _tfds().core.read_only_builder.builder_from_files(
                self._name,
                data_dir=data_dir,
                **{name: value for name, value in options.items() if value},
            )
        except (*files.READ_ERRORS, ValueError) as error:
            name = "/".join(filter(None, (self._name, self._config)))
            root = data_dir or _tfds().core.constants.DATA_DIR
            raise SourceError(
                f"the dataset {name!r} is not prepared in {root} ({files.why(error)}); to "
                f"download and prepare it, once, with TensorFlow: pip install tensorflow && "
                f"tfds build {name} --file_format=array_record --data_dir={root}"
            ) from error

    def _open(self, builder: Any) -> Any:
        tfds = _tfds()
        try:
            return builder.as_data_source(
                self._split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
            )
        except NotImplementedError as error:
            raise SourceError(
                f"{builder.data_dir} is stored as {builder.info.file_format.value}, expected "
                f"array_record; to convert it, with TensorFlow: pip install tensorflow && "
                f"tfds convert_format --out_file_format=array_record "
                f"--dataset_version_dir={builder.data_dir}"
            ) from error
        except _damage() as error:
            raise SourceError(
                f"the split {self._split!r} of {self._name} cannot be opened: {files.why(error)} "
                f"(splits: {', '.join(builder.info.splits)})"
            ) from error


def frames_to_nut(frames: list[bytes]) -> bytes:
    """Muxes encoded images into one NUT file without decoding them. Raises SourceError."""
    import av

    codec = "png" if frames[0].startswith(b"\x89PNG") else "mjpeg"
    file = io.BytesIO()
    try:
        with av.open(file, "w", format="nut") as container:
            stream: Any = container.add_stream(codec, rate=_VIDEO_RATE)
            with Image.open(io.BytesIO(frames[0]), formats=["PNG", "JPEG"]) as first:
                stream.width, stream.height = first.size
            stream.pix_fmt = "rgb24" if codec == "png" else "yuvj420p"
            for index, frame in enumerate(frames):
                packet = av.Packet(frame)
                packet.stream, packet.time_base = stream, Fraction(1, _VIDEO_RATE)
                packet.pts, packet.dts, packet.duration = index, index, 1
                packet.is_keyframe = True
                container.mux(packet)
    except (av.FFmpegError, OSError) as error:
        raise SourceError(f"its frames cannot be muxed into a video: {files.why(error)}") from error
    return file.getvalue()


def _tfds() -> Any:
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise SourceError(
            f"'tfds:' needs TensorFlow Datasets ({files.why(error)}): "
            "pip install tensorflow-datasets"
        ) from error
    return tensorflow_datasets


def _damage() -> tuple[type[Exception], ...]:
    from google.protobuf import message

    # ArrayRecord raises RuntimeError for damaged chunks; the example parser raises the others.
    return (RuntimeError, ValueError, LookupError, TypeError, OSError, message.DecodeError)


def _parse(argument: str) -> tuple[str, str, str, str]:
    """NAME, CONFIG, VERSION and SPLIT of a spec; missing ones are empty, or "train"."""
    found = _SPEC.fullmatch(argument)
    if found is None:
        raise SourceError(
            f"'tfds:{argument}' is not a valid spec, expected "
            "tfds:NAME[/CONFIG][:VERSION][:SPLIT], as in 'tfds:mnist:train'"
        )
    parts = found.groupdict(default="")
    return parts["name"], parts["config"], parts["version"], parts["split"] or "train"


def _only(features: Any, kind: type, preferred: str) -> str | None:
    """The feature of a type with the preferred name, else the only one of that type."""
    names = [name for name, feature in features.items() if isinstance(feature, kind)]
    if preferred in names:
        return preferred
    return names[0] if len(names) == 1 else None
