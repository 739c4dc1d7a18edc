"""The set-up of a preparation: settings checked, source listed, tokenizer trained, all of it once.

Set-up ends with `job.json`. From then on every shard is a pure function of the folder: which
process makes it, in which order and how often does not show in its bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from data_pipelines import representations
from data_pipelines.preparation import listing, tokenizer_training
from data_pipelines.representations.base import Representation, TokenizedRepresentation
from data_pipelines.shards import files, reader
from data_pipelines.sources import open_source
from data_pipelines.sources.base import Kind
from data_pipelines.utils.files import remove_unfinished, to_json, write_atomically

JOB = "job.json"
FORMAT = "prepare-job/1"

# make(num_labels=.., tokenizer=..) -> the representation with these options changed.
Maker = Callable[..., Representation]


class SettingsError(ValueError):
    """The settings are not usable, or the folder holds shards made with others."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides what the shards hold; plain JSON values.

    Attributes:
      source: see `sources.open_source`.
      representation: `Representation.to_config()`; with `train_tokenizer`, the one to train for.
      conditional: give the representation one label token for each of the source's labels.
      copies: augmented copies of each training image, beside the image itself.
      augment: options of `augment.Augment`; empty for its defaults.
      eval_fraction: part of the images, 0 <= eval_fraction < 1, that go to the split 'eval'.
      num_shards: shards of the split 'train'; 0 chooses by the number of documents.
      drop_duplicates: leave out images whose files are equal to another's, byte for byte.
      train_tokenizer: {} for none, else vocab_size, documents, kind, seed (see docs/data.md).
    """

    source: str
    representation: Mapping[str, Any]
    conditional: bool = False
    copies: int = 0
    augment: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    eval_fraction: float = 0.0
    num_shards: int = 0
    drop_duplicates: bool = False
    train_tokenizer: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.copies < 2**16:
            raise SettingsError(f"copies is {self.copies}; expected 0 to 65535")
        if not 0 <= self.eval_fraction < 1:
            raise SettingsError(
                f"eval_fraction is {self.eval_fraction}; expected a part, 0 <= eval_fraction < 1"
            )
        if not 0 <= self.num_shards < 100_000:
            raise SettingsError(f"num_shards is {self.num_shards}; expected 0 (choose) to 99999")

    def to_json(self) -> dict[str, Any]:
        """Through JSON and back, so that what is stored and what is asked compare equal."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


@dataclasses.dataclass(frozen=True)
class Job:
    """A set-up folder: `facts` is the content of job.json, `id` the hash of it."""

    folder: epath.Path
    facts: Mapping[str, Any]
    id: str

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.facts["settings"]

    @property
    def num_shards(self) -> Mapping[str, int]:
        return self.facts["num_shards"]

    @property
    def kind(self) -> Kind:
        """Of the files that are prepared."""
        return representations.load(self.folder).kind

    def names(self) -> list[tuple[str, str]]:
        """(split, shard name) of every shard, in the order of documents."""
        return [
            (split, files.stem(split, index, count))
            for split, count in self.num_shards.items()
            for index in range(count)
        ]


def set_up(folder: epath.PathLike, settings: Settings, make: Maker) -> Job:
    """The folder's job; made now unless it was set up before with the same settings.

    Args:
      folder: where the shards will lie; made if it is not there.
      settings: what they will hold.
      make: makes the representation, its options `num_labels` and `tokenizer` changed as asked.

    Raises:
      SettingsError: the folder was set up with other settings; the message names both.
      SourceError: the source cannot be listed or holds no image.
    """
    folder = epath.Path(folder)
    job = read_job(folder)
    if job is not None:
        require_same(job, settings)
        return job
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    source = open_source(settings.source, make().kind)
    label_names = list(source.label_names)
    options = {"num_labels": _num_labels(settings, label_names)} if settings.conditional else {}
    representation = make(**options)
    if settings.copies and representation.kind != "image":
        raise SettingsError(
            f"copies is {settings.copies}; images have augmented copies, {representation.medium}s "
            "have none: set it to 0"
        )
    listed = listing.write(
        source,
        folder,
        copies=settings.copies,
        eval_fraction=settings.eval_fraction,
        num_shards=settings.num_shards,
    )
    if settings.train_tokenizer:
        if not isinstance(representation, TokenizedRepresentation):
            raise SettingsError(
                f"{representation.name} documents are not made by a tokenizer, so none can be "
                "trained: set train_tokenizer to 0"
            )
        model = tokenizer_training.train(source, listed, representation, **settings.train_tokenizer)
        with tempfile.NamedTemporaryFile(suffix=".model") as file:
            file.write(model)
            file.flush()
            representation = make(**options, tokenizer=file.name)
    representation.save(folder)
    facts = {
        "format": FORMAT,
        "settings": settings.to_json(),
        "representation": {
            "fingerprint": representation.fingerprint,
            "config": representation.to_config(),
        },
        "label_names": label_names,
        "encoder": representation.encoder_versions,
        **listed.facts,
    }
    write_atomically(folder / JOB, to_json(facts))
    made = read_job(folder)
    assert made is not None
    return made


def wait_for(folder: epath.PathLike, settings: Settings, seconds: float) -> Job:
    """The job that another process is setting up. Raises SettingsError if it never appears."""
    deadline = time.monotonic() + seconds
    while (job := read_job(folder)) is None:
        if time.monotonic() > deadline:
            raise SettingsError(
                f"{epath.Path(folder) / JOB} did not appear within {seconds:.0f} s: task 0 lists "
                "the source and writes it; start task 0, see its log, or raise --setup_timeout"
            )
        time.sleep(min(2.0, seconds / 10))
    require_same(job, settings)
    return job


def read_job(folder: epath.PathLike) -> Job | None:
    """The folder's job, or None if it was never set up. Raises ShardError if it is damaged."""
    path = epath.Path(folder) / JOB
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        facts = json.loads(data)
        if facts["format"] != FORMAT:
            raise ValueError(f"format {facts['format']!r} where {FORMAT!r} is due")
    except (ValueError, KeyError, TypeError) as error:
        raise files.ShardError(
            f"{path}: is damaged or of another version ({error}); delete the folder and prepare "
            "it again"
        ) from error
    return Job(epath.Path(folder), facts, hashlib.sha256(data).hexdigest())


def require_same(job: Job, settings: Settings) -> None:
    ours, theirs = job.settings, settings.to_json()
    if ours == theirs:
        return
    nested = [name for name in theirs if isinstance(theirs[name], dict)]
    flat_ours, flat_theirs = _flatten(ours, nested), _flatten(theirs, nested)
    raise SettingsError(
        f"{job.folder} holds shards made with other settings; they differ in "
        f"{reader.differences(flat_ours, flat_theirs, 'in the folder', 'asked for')}. Choose "
        "another folder, or delete this one"
    )


def _num_labels(settings: Settings, label_names: list[str]) -> int:
    if not label_names:
        raise SettingsError(
            f"a conditional model needs labels, and source {settings.source} has none: put files "
            "into one subfolder a class, or turn `conditional` off"
        )
    return len(label_names)


def _flatten(settings: Mapping[str, Any], nested: list[str]) -> dict[str, Any]:
    flat = {name: value for name, value in settings.items() if name not in nested}
    for name in nested:
        inner = settings.get(name) or {}
        flat.update({f"{name}.{key}": value for key, value in inner.items()})
    return flat
