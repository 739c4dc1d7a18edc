"""Example: python -m data_pipelines.prepare --config=configs/jpeg.py:imagenet64 \\
    --source=folder:PHOTOS --out=SHARDS --eval_fraction=0.02

Encodes a source of images or videos into shards of token sequences, once, before training. If it
is stopped, run the same command again: it resumes with the missing shards. docs/data.md documents
other sources, clusters and the format of the shards.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tqdm
from absl import flags
from etils import epath
from ml_collections import config_flags

from data_pipelines import representations
from data_pipelines.media.augment import Augment
from data_pipelines.preparation import artifact_training, launchers
from data_pipelines.preparation.finish import finish
from data_pipelines.preparation.job import (
    Job,
    Settings,
    SettingsError,
    read_job,
    require_same,
    set_up,
    wait_for,
)
from data_pipelines.preparation.process import ShardSpec
from data_pipelines.representations.base import Representation
from data_pipelines.shards import reader, storage
from data_pipelines.shards.storage import ShardError
from data_pipelines.utils import command
from data_pipelines.utils.cpus import num_cpus
from data_pipelines.utils.files import unknown_scheme
from data_pipelines.utils.lease import Lease

SETUP_TIMEOUT = 3600.0
LAUNCHERS = ("pool", "beam")
_LEASE = "lease-"
_LOG_SECONDS = 30.0


def prepare(
    *,
    source: str,
    representation: Mapping[str, Any] | Representation,
    out: epath.PathLike,
    conditional: bool = False,
    copies: int = 0,
    augment: Mapping[str, Any] | None = None,
    eval_fraction: float = 0.0,
    num_shards: int = 0,
    drop_duplicates: bool = False,
    train_tokenizer: Mapping[str, Any] | None = None,
    retry_rejected: bool = False,
    workers: int = 0,
    task: int = 0,
    num_tasks: int = 1,
    launcher: str = "pool",
    pipeline_arguments: Sequence[str] = (),
    setup_timeout: float = SETUP_TIMEOUT,
) -> epath.Path:
    """Makes a folder of shards, or resumes one; returns immediately if it is complete.

    Args:
      source: spec of the source, see `sources.open_source`.
      representation: a `Representation`, or options of `representations.make` (with its name);
        `conditional` needs options.
      out: folder to write; local or `gs://`. A folder has one set of settings.
      conditional: whether the representation gets one label token for each label of the source.
      copies: augmented copies of each training image, in addition to the image itself.
      augment: options of `augment.Augment`.
      eval_fraction: fraction of the images in the split 'eval', by the hash of their keys.
      num_shards: shards of the split 'train'; 0 for a number by the size of the source.
      drop_duplicates: whether to drop images whose files are byte-identical to another's.
      train_tokenizer: options of `artifact_training.train` (vocab_size, documents, kind, seed);
        none, or a vocab_size of 0, trains no tokenizer. Colour clusters that are missing are
        trained in any case.
      retry_rejected: whether to retry the images that were rejected before, and only them.
      workers: number of worker processes; 0 for one per core. A representation that encodes on a
        device does so in this process.
      task, num_tasks: index and number of tasks of an array job; a task makes its part of the
        shards. Task 0 sets up the folder; the task that makes the last shard writes the manifest.
      launcher: 'pool' (local processes) or 'beam'.
      pipeline_arguments: flags for Beam.
      setup_timeout: seconds that other tasks wait for task 0.

    Returns:
      `out`. It is complete, except in an array job while other tasks are running.

    Raises:
      ValueError: task or workers is out of range.
      SettingsError: invalid settings, or the folder was set up with other settings.
      SourceError: the source cannot be listed or has no image.
      StorageUnavailable: the source is gone or does not answer; the same call resumes.
      FolderInUse: another preparation writes the folder.
      WriteError: the disk is full.
      ShardError: stored files are damaged, or every image was rejected.
    """
    make = _maker(representation)
    made = make()
    settings = Settings(
        source=source,
        representation=made.to_config(),
        conditional=conditional,
        copies=copies,
        augment=_augment_options(copies, augment or {}),
        eval_fraction=eval_fraction,
        num_shards=num_shards,
        drop_duplicates=drop_duplicates,
        train_tokenizer=_training_options(train_tokenizer or {}, made),
    )
    launchers.check_task(task, num_tasks)
    if workers < 0:
        raise SettingsError(f"workers is {workers}; expected 0 (one per core) or more")
    if launcher not in LAUNCHERS:
        raise SettingsError(f"launcher is {launcher!r}; expected 'pool' or 'beam'")
    if text := unknown_scheme(os.fspath(out)):
        raise SettingsError(text)
    folder = epath.Path(out)
    job = read_job(folder)
    if job is not None:
        require_same(job, settings)
        if _is_complete(job, retry_rejected):
            return folder
    with folder_lease(folder, task, num_tasks) as lease:
        if task == 0:
            job = set_up(folder, settings, make)
        else:
            job = wait_for(folder, settings, setup_timeout)
        if _is_complete(job, retry_rejected):
            return folder
        (folder / reader.MANIFEST).unlink(missing_ok=True)  # it lists rejects that are now retried
        specs = launchers.of_task(_specs(job, retry_rejected), task, num_tasks)
        if launcher == "beam":
            launchers.run_beam(specs, pipeline_arguments)
        else:
            with _ProgressBar(job, specs, lease) as progress:
                if job.on_device:
                    launchers.run_on_device(specs, progress)
                else:
                    launchers.run_pool(specs, workers or num_cpus(), progress)
        lease.confirm()
        finish(job)
    return folder


@contextlib.contextmanager
def folder_lease(folder: epath.Path, task: int, num_tasks: int) -> Iterator[Lease]:
    """Owns a folder of shards for one task; the tasks of one array job share the folder.

    Each task has a lease file of its own, so a task that was started twice is refused. Leases of
    jobs with another number of tasks, a plain command among them, are refused if their owner lives.

    Raises FolderInUse.
    """

    def report(text: str) -> None:
        print(text, file=sys.stderr)

    def others() -> list[str]:
        ours = f"-of-{num_tasks:05d}.json"
        found = [path.name for path in folder.iterdir() if path.name.startswith(_LEASE)]
        return [name for name in found if not name.endswith(ours)]

    own = Lease(folder, file=f"{_LEASE}{task:05d}-of-{num_tasks:05d}.json", report=report)
    with own:
        for name in others():
            with Lease(folder, file=name, report=report):
                pass  # its owner has ended
        yield own


def _maker(representation: Mapping[str, Any] | Representation) -> Callable[..., Representation]:
    if isinstance(representation, Representation):

        def unchanged(**changes: Any) -> Representation:
            if changes:
                raise SettingsError(
                    "conditional changes the representation: pass its options as "
                    "dict(name=..., ...), not a Representation"
                )
            return representation

        return unchanged
    options = dict(representation)
    return lambda **changes: representations.make(**{**options, **changes})


def _augment_options(copies: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """All options of `Augment`, including defaults; {} without copies."""
    if not copies:
        return {}
    try:
        return dataclasses.asdict(Augment(**options))
    except (TypeError, ValueError) as error:
        raise SettingsError(f"augment: {error}") from error


def _training_options(options: Mapping[str, Any], representation: Representation) -> dict[str, Any]:
    """Options of `artifact_training.train`; {} if nothing is to be trained."""
    options = {"vocab_size": 0, **options}
    if options["vocab_size"]:
        return options
    if not representation.needs_training:
        return {}
    defaults = {"documents": artifact_training.DOCUMENTS, "seed": 0}
    return {name: options.get(name, value) for name, value in defaults.items()}


def _is_complete(job: Job, retry_rejected: bool) -> bool:
    """Whether the folder has this job's manifest and all its shards."""
    try:
        manifest = reader.read_manifest(job.folder)
    except (FileNotFoundError, ShardError):
        return False
    present = {path.name for path in job.folder.iterdir()}
    files = {part["index"]["file"] for part in manifest["splits"].values()}
    rejected = 0
    for _, name in job.names():
        files |= {path(job.folder, name).name for path in storage.REQUIRED_FILES}
    for part in manifest["splits"].values():
        rejected += sum(shard["rejects"] for shard in part["shards"])
    return manifest["job"] == job.id and files <= present and not (retry_rejected and rejected)


def _specs(job: Job, retry_rejected: bool) -> list[ShardSpec]:
    return [
        ShardSpec(str(job.folder), job.id, split, index, count, retry_rejected)
        for split, count in job.num_shards.items()
        for index in range(count)
    ]


class _ProgressBar:
    """The progress bar: processed images (and their copies) or videos, rate, time left.

    Every update checks the lease on the folder.
    """

    def __init__(self, job: Job, specs: Sequence[ShardSpec], lease: Lease):
        self._lease = lease
        total = sum(_documents_to_make(job, spec) for spec in specs)
        interactive = sys.stderr.isatty()  # in a log, update rarely
        self._bar = tqdm.tqdm(
            total=total,
            unit=job.kind,
            desc="prepare",
            dynamic_ncols=True,
            mininterval=0.1 if interactive else _LOG_SECONDS,
        )
        self._rejected = 0

    def __enter__(self) -> Callable[[int, int], None]:
        return self._add

    def __exit__(self, *_: Any) -> None:
        self._bar.close()

    def _add(self, made: int, rejected: int) -> None:
        self._lease.check()
        self._rejected += rejected
        if self._rejected:
            self._bar.set_postfix(rejected=self._rejected, refresh=False)
        self._bar.update(made + rejected)


def _documents_to_make(job: Job, spec: ShardSpec) -> int:
    sidecar = storage.read_sidecar(job.folder, spec.name)
    if sidecar is not None and not (spec.retry_rejected and sidecar["rejects"]):
        return 0
    copies = job.settings["copies"] if spec.split == "train" else 0
    return job.facts["listing"][spec.name]["items"] * (1 + copies)


def _from_flags(pipeline_arguments: Sequence[str]) -> dict[str, Any]:
    """Arguments of `prepare` from flags; values without a flag come from the config."""
    values = flags.FLAGS
    config, data = values.config, values.config.data
    tokenizer = {
        "vocab_size": values.train_tokenizer,
        "documents": values.tokenizer_documents,
        "kind": values.tokenizer_kind,
    }
    given = {name: value for name, value in tokenizer.items() if value is not None}
    return {
        "source": data.source if values.source is None else values.source,
        "representation": config.representation.to_dict(),
        "out": values.out,
        "conditional": data.get("conditional", False),
        "copies": data.get("copies", 0) if values.copies is None else values.copies,
        "augment": dict(data.get("augment", {})),
        "eval_fraction": data.get("eval_fraction", 0.0)
        if values.eval_fraction is None
        else values.eval_fraction,
        "num_shards": values.num_shards,
        "drop_duplicates": values.drop_duplicates,
        "train_tokenizer": {**data.get("train_tokenizer", {}), **given} or None,
        "retry_rejected": values.retry_rejected,
        "workers": values.workers,
        "task": values.task,
        "num_tasks": values.num_tasks,
        "launcher": values.launcher,
        "pipeline_arguments": pipeline_arguments,
        "setup_timeout": values.setup_timeout,
    }


def _summary(folder: epath.Path, was_complete: bool) -> str:
    try:
        manifest = reader.read_manifest(folder)
    except FileNotFoundError:
        return (
            f"{folder}: this task is done; the task that makes the last shard writes the manifest"
        )
    lines = [f"{folder} is complete"]
    for split, part in manifest["splits"].items():
        lines.append(
            f"  {split}: {part['documents']:,} documents of {part['images']:,} images, "
            f"{part['tokens']:,} tokens, {len(part['shards'])} shards"
        )
    if manifest["duplicates"]["count"]:
        lines.append(f"  {manifest['duplicates']['count']:,} duplicates dropped")
    rejects = manifest["rejects"]
    listed = f": {rejects['file']}" if rejects["count"] else ""
    lines.append(f"  {rejects['count']:,} rejected{listed}")
    lines += [f"  {count:10,}  {reason}" for reason, count in rejects["reasons"].items()]
    lines.append(f"  skipped: {reader.skipped_text(manifest)}")
    lines += [f"  warning: {text}" for text in manifest["warnings"]]
    if was_complete:
        lines.append(
            "  nothing was made: the folder was complete. Files added to the source since it was "
            "listed are not in it: prepare them into another folder B and train on both with "
            "--config.data.shards=A,B"
        )
    return "\n".join(lines)


def _define_flags() -> None:
    """Defines the flags; not on import, since other commands have flags of the same names."""
    config_flags.DEFINE_config_file("config", None, "Configuration to prepare for, FILE.py:PRESET.")
    flags.DEFINE_string("out", None, "Folder for the shards, local or gs://.", required=True)
    flags.DEFINE_string(
        "source",
        None,
        "Images or videos to encode: digits, moving_digits[:CLIPS], folder:PATH, tar:GLOB, "
        "tfds:NAME[/CONFIG][:SPLIT] or parquet:GLOB. Default: the config's.",
    )
    flags.DEFINE_integer("copies", None, "Augmented copies of each image. Default: the config's.")
    flags.DEFINE_float(
        "eval_fraction",
        None,
        "Fraction of the images in the eval split, by the hash of their keys. Default: the "
        "config's.",
    )
    flags.DEFINE_integer("num_shards", 0, "Shards of the train split; 0: by the source's size.")
    flags.DEFINE_boolean("drop_duplicates", False, "Drop images whose files are byte-identical.")
    flags.DEFINE_integer(
        "train_tokenizer",
        None,
        "Train a BPE tokenizer with this many entries (the paper: 320); 0: none. Default: the "
        "config's.",
    )
    flags.DEFINE_integer(
        "tokenizer_documents",
        None,
        "Images to train the tokenizer on, or the colour clusters of pixels. Default: the config's "
        "(the paper: 10,000).",
    )
    flags.DEFINE_enum(
        "tokenizer_kind",
        None,
        ["bpe", "codewords"],
        "Train it on bytes, as the papers do, or on code words (1,024 entries or more). "
        "Default: the config's.",
    )
    flags.DEFINE_boolean("retry_rejected", False, "Retry only the images that were rejected.")
    flags.DEFINE_integer("workers", 0, "Worker processes; 0: one per core.")
    flags.DEFINE_integer("task", 0, "Index of this task in an array job, from 0.")
    flags.DEFINE_integer("num_tasks", 1, "Number of tasks of the array job.")
    flags.DEFINE_enum(
        "launcher",
        "pool",
        list(LAUNCHERS),
        "Local processes or Apache Beam.",
    )
    flags.DEFINE_float(
        "setup_timeout", SETUP_TIMEOUT, "Seconds to wait for task 0 to set up the folder."
    )
    flags.mark_flag_as_required("config")


def main(arguments: Sequence[str]) -> None:
    if flags.FLAGS.launcher != "beam":
        command.no_arguments(arguments)
    options = _from_flags(arguments[1:])
    was_complete = _manifest_exists(options["out"]) and not options["retry_rejected"]
    print(_summary(prepare(**options), was_complete))


def _manifest_exists(out: str) -> bool:
    return not unknown_scheme(out) and (epath.Path(out) / reader.MANIFEST).exists()


if __name__ == "__main__":
    _define_flags()
    command.run(main, ShardError, OSError, ImportError)
