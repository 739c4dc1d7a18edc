"""Sets up a folder of shards: checks the settings, lists the source, trains artefacts.

Set-up runs once and ends with `job.json`. After it, the bytes of a shard depend on the folder only,
not on the process that makes it, the order of shards, or retries.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from data_pipelines import representations
from data_pipelines.media import Kind
from data_pipelines.preparation import artifact_training, listing
from data_pipelines.representations.base import Representation
from data_pipelines.shards import storage
from data_pipelines.sources import Source, open_source
from data_pipelines.utils.compare import differences
from data_pipelines.utils.files import remove_unfinished, to_json, write_atomically

JOB = "job.json"
FORMAT = "prepare-job/2"

# make(num_labels=..) -> the representation with these options replaced.
Maker = Callable[..., Representation]


class SettingsError(ValueError):
    """The settings are invalid, or the folder has shards made with other settings."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings that affect the contents of shards; JSON values.

    Attributes:
      source: see `sources.open_source`.
      representation: `Representation.to_config()`, before artefacts are trained.
      conditional: whether the representation gets one label token for each label of the source.
      copies: augmented copies of each training image, in addition to the image itself.
      augment: options of `augment.Augment`; empty for its defaults.
      eval_fraction: fraction of the images, 0 <= eval_fraction < 1, in the split 'eval'.
      num_shards: shards of the split 'train'; 0 for a number by the size of the source.
      drop_duplicates: whether to drop images whose files are byte-identical to another's.
      train_tokenizer: options of `artifact_training.train`; {} if nothing is trained.
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
                f"eval_fraction is {self.eval_fraction}; expected 0 <= eval_fraction < 1"
            )
        if not 0 <= self.num_shards < 100_000:
            raise SettingsError(f"num_shards is {self.num_shards}; expected 0 (automatic) to 99999")

    def to_json(self) -> dict[str, Any]:
        """The settings after a JSON round trip, so that they compare equal to stored ones."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


@dataclasses.dataclass(frozen=True)
class Job:
    """A set-up folder: `facts` is the content of job.json, `id` its SHA-256."""

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
        """Whether the source's files are images or videos."""
        return representations.load(self.folder).kind

    @property
    def on_device(self) -> bool:
        """Whether the representation encodes on JAX's devices."""
        return representations.load(self.folder).on_device

    def names(self) -> list[tuple[str, str]]:
        """(split, shard name) of every shard, in the order of documents."""
        return [
            (split, storage.stem(split, index, count))
            for split, count in self.num_shards.items()
            for index in range(count)
        ]


def set_up(folder: epath.PathLike, settings: Settings, make: Maker) -> Job:
    """Sets up a folder and returns its job; returns the existing job for the same settings.

    Args:
      folder: folder for the shards; made if it does not exist.
      settings: see `Settings`.
      make: makes the representation, with the options it is called with replaced.

    Raises:
      SettingsError: the folder was set up with other settings; the message has both.
      SourceError: the source cannot be listed or has no image.
      StorageUnavailable: the source is gone or does not answer.
    """
    folder = epath.Path(folder)
    job = read_job(folder)
    if job is not None:
        require_same(job, settings)
        return job
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    unlabelled = make()
    if settings.copies and unlabelled.kind != "image":
        raise SettingsError(
            f"copies is {settings.copies}, expected 0: only images have augmented copies, "
            f"{unlabelled.medium}s have none"
        )
    source = open_source(settings.source, unlabelled.kind)
    listed = listing.write(
        source,
        folder,
        copies=settings.copies,
        eval_fraction=settings.eval_fraction,
        num_shards=settings.num_shards,
    )
    label_names = list(source.label_names)  # known now: some sources list for them
    options = {"num_labels": _num_labels(source, label_names)} if settings.conditional else {}
    representation = make(**options)
    if settings.train_tokenizer:
        representation = artifact_training.train(
            source, listed, representation, **settings.train_tokenizer
        )
    representation.save(folder)
    facts = {
        "format": FORMAT,
        "settings": settings.to_json(),
        "representation": {
            "fingerprint": representation.fingerprint,
            "config": representation.to_config(),
        },
        "token_dtype": representation.token_dtype.name,
        "label_names": label_names,
        "encoder": representation.encoder_versions,
        **listed.facts,
    }
    write_atomically(folder / JOB, to_json(facts))
    made = read_job(folder)
    assert made is not None
    return made


def wait_for(folder: epath.PathLike, settings: Settings, seconds: float) -> Job:
    """Waits for the job that task 0 sets up. Raises SettingsError after `seconds`."""
    deadline = time.monotonic() + seconds
    while (job := read_job(folder)) is None:
        if time.monotonic() > deadline:
            raise SettingsError(
                f"{epath.Path(folder) / JOB} did not appear within {seconds:.0f} s: task 0 lists "
                "the source and writes it; start task 0, check its log, or increase "
                "--setup_timeout"
            )
        time.sleep(min(2.0, seconds / 10))
    require_same(job, settings)
    return job


def read_job(folder: epath.PathLike) -> Job | None:
    """Reads the folder's job; None if it is not set up. Raises ShardError if it is damaged."""
    path = epath.Path(folder) / JOB
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        facts = json.loads(data)
        if facts["format"] != FORMAT:
            raise ValueError(f"the format is {facts['format']!r}, expected {FORMAT!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise storage.ShardError(
            f"{path}: is damaged or of another version ({error}); delete the folder and prepare "
            "it again"
        ) from error
    return Job(epath.Path(folder), facts, hashlib.sha256(data).hexdigest())


def require_same(job: Job, settings: Settings) -> None:
    """Raises SettingsError, with the differing values, if the job has other settings."""
    ours, theirs = job.settings, settings.to_json()
    if ours == theirs:
        return
    nested = [name for name in theirs if isinstance(theirs[name], dict)]
    flat_ours, flat_theirs = _flatten(ours, nested), _flatten(theirs, nested)
    differing = ", ".join(differences(flat_ours, flat_theirs, "in the folder", "in this command"))
    raise SettingsError(
        f"{job.folder} was set up with other settings: {differing}. Choose another folder, or "
        "delete this one"
    )


def _num_labels(source: Source, label_names: list[str]) -> int:
    if not label_names:
        advice = f": {source.label_advice};" if source.label_advice else ";"
        raise SettingsError(
            f"conditional is True, but {source.spec} has no labels{advice} or set conditional to "
            "False (--config.data.conditional=False)"
        )
    return len(label_names)


def _flatten(settings: Mapping[str, Any], nested: list[str]) -> dict[str, Any]:
    flat = {name: value for name, value in settings.items() if name not in nested}
    for name in nested:
        inner = settings.get(name) or {}
        flat.update({f"{name}.{key}": value for key, value in inner.items()})
    return flat
