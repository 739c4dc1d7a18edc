"""From images to features: by any function, over all devices, resumable.

An `Extractor` is what a network looks like from here: a name, what decides its numbers, a function
of one image and a function of a batch. `extract` writes features in parts of a few hundred images.
A part is known by the bytes of its images and by the extractor, so that after an interruption, or
after some images have changed, only what is missing is computed. Several processes, each with its
own devices, share the parts of one folder.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import tqdm
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from data_pipelines.utils import npz
from data_pipelines.utils.files import write_atomically
from evals.distances.statistics import FeatureError
from evals.inputs.images import Images

PART = 512  # images of a part: what an interruption costs at most
INDEX = "features.json"
_PREFIX = "feature_"  # of the names of arrays in a part
# That read, decode and resize ahead.
_THREADS = min(32, max(4, os.cpu_count() or 1))
# What a file that is missing, damaged or no image raises.
_UNREADABLE = (ValueError, OSError)

T = TypeVar("T")
Features = Mapping[str, Any]
Apply = Callable[[np.ndarray], Features]


@dataclasses.dataclass(frozen=True)
class Extractor:
    """Any function from images to features.

    Attributes:
      name: what the features are called in reports: "inception", "dinov2", ...
      main: which of the features distances are computed of.
      about: what decides the numbers, as JSON values: hash of the weights, resize, ...
      prepare: one image, uint8 [height, width, 3] of any size, to the network's input, of one
        shape and type for all. It runs in threads.
      apply: a batch of inputs [B, ...] to features by name, float [B, d] each. The last batch
        is filled up, so that B is always the same.
    """

    name: str
    main: str
    about: Mapping[str, Any]
    prepare: Callable[[np.ndarray], np.ndarray]
    apply: Apply

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits over what decides the numbers."""
        return _hash(json.dumps([self.name, self.main, dict(self.about)], sort_keys=True).encode())


def on_devices(function: Callable[[Any, jax.Array], Features], params: Any) -> Apply:
    """A function of weights and a batch as an `apply`: the batch split over this process's devices.

    On a CPU images go through one after the other, since then what lies between two layers stays
    in the cache: 1.5 times as fast for the FID network. The size of the batch must be a multiple of
    the number of devices.
    """
    mesh = Mesh(np.array(jax.local_devices()), ("batch",))
    whole, split = PartitionSpec(), PartitionSpec("batch")
    params = jax.device_put(params, NamedSharding(mesh, whole))

    def one_by_one(params: Any, batch: jax.Array) -> Features:
        found = jax.lax.map(lambda image: function(params, image[None]), batch)
        return jax.tree.map(lambda x: x.reshape(len(batch), -1), found)

    run = jax.jit(
        jax.shard_map(
            one_by_one if jax.default_backend() == "cpu" else function,
            mesh=mesh,
            in_specs=(whole, split),
            out_specs=split,
        )
    )
    return lambda batch: jax.device_get(
        run(params, jax.device_put(batch, NamedSharding(mesh, split)))
    )


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """The features of a set of images.

    Attributes:
      features: by name, float32 [n, d] each, in the order of the images.
      keys: names of the images, n of them.
      digests: 16 bytes of each image's pixels, uint8 [n, 16]: equal for equal pixels.
      sizes: how many images have which size, "width x height".
      rejected: (name, reason) of files that are no readable images; none of them is among the n.
      about: {"extractor", "settings", "main", "images", "inputs"}: what the features are of;
        "inputs" is a hash of all bytes.
    """

    features: Mapping[str, np.ndarray]
    keys: Sequence[str]
    digests: np.ndarray
    sizes: Mapping[str, int]
    rejected: Sequence[tuple[str, str]]
    about: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def main(self) -> np.ndarray:
        """The features that distances are computed of."""
        return self.features[self.about["main"]]

    @classmethod
    def load(cls, folder: epath.PathLike) -> FeatureSet:
        """What `extract` has written. Raises FeatureError if it is not complete."""
        folder = epath.Path(folder)
        if not (folder / INDEX).is_file():
            raise FeatureError(f"{folder} holds no complete set of features; extract them (again)")
        index = json.loads((folder / INDEX).read_text())
        parts = [npz.load(folder / name) for name in index["parts"]]
        features = {
            name.removeprefix(_PREFIX): np.concatenate(
                [part[name] for part in parts if name in part]
            )
            for name in set().union(*parts)  # a part of damaged images alone has none
            if name.startswith(_PREFIX)
        }
        told = [json.loads(str(part["about"])) for part in parts]
        sizes = collections.Counter(size for part in told for size in part["sizes"])
        return cls(
            features,
            [key for part in told for key in part["keys"]],
            np.concatenate([part["digests"] for part in parts]),
            dict(sizes.most_common()),
            [tuple(pair) for pair in index["set_aside"]]
            + [tuple(pair) for part in told for pair in part["rejected"]],
            index["about"],
        )


def extract(
    images: Images, extractor: Extractor, folder: epath.PathLike, *, batch_size: int = 32
) -> FeatureSet:
    """Computes features, or goes on with them, and writes them to a folder.

    Files that are no readable images are set aside and named, see `FeatureSet.rejected`.

    Args:
      images: what to look at.
      extractor: what to look with.
      folder: of this set of images; several extractors may share it, not several sets.
      batch_size: images that are looked at together; rounded up to a multiple of the devices.

    Raises:
      FeatureError: no image can be read, or the network gives NaN or infinity; it names images.
    """
    if not len(images):
        raise FeatureError(f"{images.name} holds no image")
    folder = epath.Path(folder) / folder_name(extractor)
    folder.mkdir(parents=True, exist_ok=True)
    devices = jax.local_device_count()
    work = _Work(images, extractor, folder, -(-batch_size // devices) * devices)
    ranges = [range(at, min(at + PART, len(images))) for at in range(0, len(images), PART)]
    mine = ranges[jax.process_index() :: jax.process_count()]
    with tqdm.tqdm(total=sum(map(len, mine)), unit="image", desc=images.name) as bar:
        for numbers in mine:
            work.make(numbers, bar)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(f"features of {images.name}")
    _write_index(images, extractor, folder, [_part_name(numbers) for numbers in ranges])
    return FeatureSet.load(folder)


def folder_name(extractor: Extractor) -> str:
    """Where `extract` puts what this extractor sees."""
    return f"features-{extractor.name}-{extractor.fingerprint[:8]}"


def _write_index(
    images: Images, extractor: Extractor, folder: epath.Path, parts: Sequence[str]
) -> None:
    told = [json.loads(str(npz.load(folder / name)["about"])) for name in parts]
    if not any(part["keys"] for part in told):
        rejected = [tuple(pair) for part in told for pair in part["rejected"]]
        raise FeatureError(
            f"none of the {len(images)} files of {images.name} is a readable image; the first, "
            f"{rejected[0][0]}: {rejected[0][1]}"
        )
    about = {
        "extractor": extractor.name,
        "main": extractor.main,
        "settings": dict(extractor.about),
        "images": {"from": images.name, **images.about},
        "inputs": _hash("".join(part["inputs"] for part in told).encode()),
    }
    index = {"about": about, "parts": list(parts), "set_aside": images.set_aside}
    write_atomically(folder / INDEX, json.dumps(index, indent=1).encode())


def _part_name(numbers: range) -> str:
    return f"part-{numbers.start // PART:05d}.npz"


class _Loaded(NamedTuple):
    """One image on its way to the network, or why there is none."""

    key: str
    stored: bytes  # digest of its file
    pixels: bytes = b""  # digest
    size: str = ""
    prepared: np.ndarray | None = None
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class _Work:
    """Makes parts of one set of features."""

    images: Images
    extractor: Extractor
    folder: epath.Path
    batch_size: int

    def make(self, numbers: range, bar: tqdm.tqdm) -> None:
        """Makes a part, unless it is there and its images are the same."""
        path = self.folder / _part_name(numbers)
        if path.is_file() and self._is_current(path, numbers):
            bar.update(len(numbers))
            return
        kept: list[_Loaded] = []
        rejected: list[_Loaded] = []
        features: list[Features] = []
        inputs = _Inputs()
        loaded = self._in_threads(self._load, numbers)
        while batch := list(itertools.islice(loaded, self.batch_size)):
            good = [image for image in batch if image.prepared is not None]
            if good:
                features.append(self._apply(good))
            kept += [image._replace(prepared=None) for image in good]
            rejected += [image for image in batch if image.prepared is None]
            for image in batch:
                inputs.add(image.key, image.stored)
            bar.update(len(batch))
        about = {
            "inputs": inputs.digest(),
            "keys": [image.key for image in kept],
            "sizes": [image.size for image in kept],
            "rejected": [(image.key, image.reason) for image in rejected],
        }
        digests = b"".join(image.pixels for image in kept)
        arrays = {
            "about": np.array(json.dumps(about)),
            "digests": np.frombuffer(digests, np.uint8).reshape(-1, 16),
        }
        for name in features[0] if features else ():
            arrays[_PREFIX + name] = np.concatenate([batch[name] for batch in features])
        npz.save(path, arrays)

    def _is_current(self, path: epath.Path, numbers: range) -> bool:
        """Whether a part was made of the bytes that the images have now."""
        try:
            stated = json.loads(str(npz.load(path)["about"]))["inputs"]
        except (npz.NpzError, KeyError, ValueError):
            return False  # not whole: made anew
        inputs = _Inputs()
        for number, stored in zip(numbers, self._in_threads(self._digest, numbers), strict=True):
            inputs.add(self.images.key(number), stored)
        return stated == inputs.digest()

    def _in_threads(self, function: Callable[[int], T], numbers: range) -> Iterator[T]:
        """Results in order, a few more than a batch of them made ahead."""
        window: collections.deque[concurrent.futures.Future[T]] = collections.deque()
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            for number in numbers:
                window.append(pool.submit(function, number))
                if len(window) > self.batch_size + _THREADS:
                    yield window.popleft().result()
            while window:
                yield window.popleft().result()

    def _digest(self, number: int) -> bytes:
        try:
            return _digest(self.images.read(number))
        except _UNREADABLE:
            return b""

    def _load(self, number: int) -> _Loaded:
        key, stored = self.images.key(number), b""
        try:
            data = self.images.read(number)
            stored = _digest(data)
            image = self.images.decode(number, data)
        except _UNREADABLE as error:
            return _Loaded(key, stored, reason=str(error) or type(error).__name__)
        size = f"{image.width} x {image.height}"
        pixels = np.asarray(image)
        digest = _digest(size.encode() + pixels.tobytes())
        return _Loaded(key, stored, digest, size, self.extractor.prepare(pixels))

    def _apply(self, images: Sequence[_Loaded]) -> Features:
        """Features of a batch that is filled up to the size that all have."""
        filled = [*images, *[images[-1]] * (self.batch_size - len(images))]
        batch = np.stack([image.prepared for image in filled if image.prepared is not None])
        found = {
            name: np.asarray(value, np.float32)[: len(images)]
            for name, value in self.extractor.apply(batch).items()
        }
        for name, value in found.items():
            finite = np.isfinite(value).reshape(len(images), -1).all(1)
            if not finite.all():
                first = images[int(np.argmin(finite))].key
                raise FeatureError(
                    f"feature {name} of {np.sum(~finite)} of {len(images)} images is NaN or "
                    f"infinite, the first is {first!r}: the weights of {self.extractor.name} are "
                    "unusable, or its numbers overflow"
                )
        return found


class _Inputs:
    """A hash over images as they are stored, in order."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, key: str, stored: bytes) -> None:
        self._hash.update(_digest(key.encode("utf-8", "surrogateescape")) + stored + b";")

    def digest(self) -> str:
        return self._hash.hexdigest()[:16]


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
