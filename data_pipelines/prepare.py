"""Example: python -m data_pipelines.prepare --config=configs/jpeg.py:imagenet64 \\
    --source=folder:PHOTOS --out=SHARDS --eval_fraction=0.02

Turns a source of images into shards of documents, once, before training. A run that was stopped
goes on where it was when the same command is given again. docs/data.md tells the rest: other
sources, clusters, the format of what is written.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tqdm
from absl import flags
from etils import epath
from ml_collections import config_flags

from data_pipelines import representations
from data_pipelines.media.augment import Augment
from data_pipelines.preparation import finish, job, launchers, tokenizer_training
from data_pipelines.preparation.job import Job, Settings, SettingsError
from data_pipelines.preparation.process import ShardSpec
from data_pipelines.representations.base import Representation
from data_pipelines.shards import files as shard_files
from data_pipelines.shards import reader
from data_pipelines.shards.files import ShardError
from data_pipelines.utils import command
from data_pipelines.utils.cpus import num_cpus

SETUP_TIMEOUT = 3600.0
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
    """Makes a folder of shards, or goes on with one; returns at once if it is complete.

    Args:
      source: see `sources.open_source`.
      representation: a value, or the options of `representations.make` (with its name), which
        `conditional` and `train_tokenizer` need.
      out: folder to write; local or `gs://`. One set of settings a folder.
      conditional: give the representation one label token for each of the source's labels.
      copies: augmented copies of each training image, beside the image itself.
      augment: options of `augment.Augment`.
      eval_fraction: part of the images that go to the split 'eval', by the hash of their keys.
      num_shards: shards of the split 'train'; 0 chooses by the number of documents.
      drop_duplicates: leave out images whose files are equal to another's, byte for byte.
      train_tokenizer: options of `tokenizer_training.train` (vocab_size, documents, kind, seed).
      retry_rejected: take again what was rejected before, and only that.
      workers: processes; 0 for one a core.
      task, num_tasks: of an array job: this call makes its part of the shards. Task 0 sets the
        folder up, the task that finds the last shard made writes the manifest.
      launcher: 'pool' (processes here) or 'beam'.
      pipeline_arguments: flags for Beam.
      setup_timeout: seconds that other tasks wait for task 0.

    Returns:
      `out`. It is complete, except in an array job while other tasks are at work.

    Raises:
      ValueError: task or workers out of range.
      SettingsError: unusable settings, or the folder holds shards of others.
      SourceError: the source cannot be listed or holds no image.
      ShardError: the disk is full, stored files are damaged, or every image was rejected.
    """
    make = _maker(representation)
    settings = Settings(
        source=source,
        representation=make().to_config(),
        conditional=conditional,
        copies=copies,
        augment=_augment_options(copies, augment or {}),
        eval_fraction=eval_fraction,
        num_shards=num_shards,
        drop_duplicates=drop_duplicates,
        train_tokenizer=dict(train_tokenizer or {}),
    )
    launchers.check_task(task, num_tasks)
    if workers < 0:
        raise SettingsError(f"workers is {workers}; expected 0 (one a core) or more")
    folder = epath.Path(out)
    if task == 0:
        work = job.set_up(folder, settings, make)
    else:
        work = job.wait_for(folder, settings, setup_timeout)
    if _is_complete(work, retry_rejected):
        return folder
    (folder / reader.MANIFEST).unlink(missing_ok=True)  # of rejects that are now tried again
    specs = launchers.of_task(_specs(work, retry_rejected), task, num_tasks)
    if launcher == "pool":
        with _ProgressBar(work, specs) as progress:
            launchers.run_pool(specs, workers or num_cpus(), progress)
    elif launcher == "beam":
        launchers.run_beam(specs, pipeline_arguments)
    else:
        raise SettingsError(f"launcher is {launcher!r}; expected 'pool' or 'beam'")
    finish.finish(work)
    return folder


def _maker(representation: Mapping[str, Any] | Representation) -> Callable[..., Representation]:
    if isinstance(representation, Representation):

        def unchanged(**changes: Any) -> Representation:
            if changes:
                raise SettingsError(
                    "conditional and train_tokenizer change the representation: give its options "
                    "as a dict(name=..., ...), not a finished value"
                )
            return representation

        return unchanged
    options = dict(representation)
    return lambda **changes: representations.make(**{**options, **changes})


def _augment_options(copies: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """All options, the defaults too, so that naming a default changes nothing; {} if unused."""
    if not copies:
        return {}
    try:
        return dataclasses.asdict(Augment(**options))
    except (TypeError, ValueError) as error:
        raise SettingsError(f"augment: {error}") from error


def _is_complete(work: Job, retry_rejected: bool) -> bool:
    """Whether the manifest is this job's and its shards are there: one listing of the folder."""
    try:
        manifest = reader.read_manifest(work.folder)
    except (FileNotFoundError, ShardError):
        return False
    present = {path.name for path in work.folder.iterdir()}
    files = {part["index"]["file"] for part in manifest["splits"].values()}
    rejected = 0
    for _, name in work.names():
        files |= {path(work.folder, name).name for path in shard_files.LASTING}
    for part in manifest["splits"].values():
        rejected += sum(shard["rejects"] for shard in part["shards"])
    return manifest["job"] == work.id and files <= present and not (retry_rejected and rejected)


def _specs(work: Job, retry_rejected: bool) -> list[ShardSpec]:
    return [
        ShardSpec(str(work.folder), work.id, split, index, count, retry_rejected)
        for split, count in work.num_shards.items()
        for index in range(count)
    ]


class _ProgressBar:
    """Images (and their copies) or videos dealt with: how many, how fast, how long still."""

    def __init__(self, work: Job, specs: Sequence[ShardSpec]):
        total = sum(_documents_to_make(work, spec) for spec in specs)
        often = sys.stderr.isatty()  # a log wants a line now and then
        self._bar = tqdm.tqdm(
            total=total,
            unit=work.kind,
            desc="prepare",
            dynamic_ncols=True,
            mininterval=0.1 if often else _LOG_SECONDS,
        )
        self._rejected = 0

    def __enter__(self) -> Callable[[int, int], None]:
        return self._add

    def __exit__(self, *_: Any) -> None:
        self._bar.close()

    def _add(self, made: int, rejected: int) -> None:
        self._rejected += rejected
        if self._rejected:
            self._bar.set_postfix(rejected=self._rejected, refresh=False)
        self._bar.update(made + rejected)


def _documents_to_make(work: Job, spec: ShardSpec) -> int:
    sidecar = shard_files.read_sidecar(work.folder, spec.name)
    if sidecar is not None and not (spec.retry_rejected and sidecar["rejects"]):
        return 0
    copies = work.settings["copies"] if spec.split == "train" else 0
    return work.facts["listing"][spec.name]["items"] * (1 + copies)


def _from_flags(pipeline_arguments: Sequence[str]) -> dict[str, Any]:
    """Arguments of `prepare`: the config's, where no flag says otherwise."""
    given = flags.FLAGS
    config, data = given.config, given.config.data
    trained = {
        "vocab_size": given.train_tokenizer,
        "documents": given.tokenizer_documents,
        "kind": given.tokenizer_kind,
    }
    return {
        "source": data.source if given.source is None else given.source,
        "representation": config.representation.to_dict(),
        "out": given.out,
        "conditional": data.get("conditional", False),
        "copies": data.get("copies", 0) if given.copies is None else given.copies,
        "augment": dict(data.get("augment", {})),
        "eval": data.get("eval", 0.0) if given.eval_fraction is None else given.eval_fraction,
        "num_shards": given.num_shards,
        "drop_duplicates": given.drop_duplicates,
        "train_tokenizer": trained if given.train_tokenizer else None,
        "retry_rejected": given.retry_rejected,
        "workers": given.workers,
        "task": given.task,
        "num_tasks": given.num_tasks,
        "launcher": given.launcher,
        "pipeline_arguments": pipeline_arguments,
        "setup_timeout": given.setup_timeout,
    }


def _summary(folder: epath.Path) -> str:
    try:
        manifest = reader.read_manifest(folder)
    except FileNotFoundError:
        return f"{folder}: this task is done; the task that makes the last shard completes it"
    lines = [f"{folder} is complete"]
    for split, part in manifest["splits"].items():
        lines.append(
            f"  {split}: {part['documents']:,} documents of {part['images']:,} images, "
            f"{part['tokens']:,} tokens, {len(part['shards'])} shards"
        )
    if manifest["duplicates"]["count"]:
        lines.append(f"  {manifest['duplicates']['count']:,} duplicates left out")
    rejects = manifest["rejects"]
    listed = f": {rejects['file']}" if rejects["count"] else ""
    lines.append(f"  {rejects['count']:,} rejected{listed}")
    lines += [f"  {count:10,}  {reason}" for reason, count in rejects["reasons"].items()]
    return "\n".join(lines)


def _define_flags() -> None:
    """Not at import: the training job has flags of the same names."""
    config_flags.DEFINE_config_file("config", None, "What to prepare for, FILE.py:PRESET.")
    flags.DEFINE_string("out", None, "Folder to write, local or gs://.", required=True)
    flags.DEFINE_string(
        "source",
        None,
        "digits, moving_digits[:CLIPS], folder:PATH, tar:GLOB, tfds:NAME[/CONFIG][:SPLIT] or "
        "parquet:GLOB.",
    )
    flags.DEFINE_integer("copies", None, "Augmented copies of each training image.")
    flags.DEFINE_float("eval", None, "Part of the images to hold out, by key hash.")
    flags.DEFINE_integer("num_shards", 0, "Shards for training; 0: by size.")
    flags.DEFINE_boolean("drop_duplicates", False, "Leave out files equal byte for byte.")
    flags.DEFINE_integer(
        "train_tokenizer",
        0,
        "Train a BPE tokenizer of this many entries (the paper: 320); 0: none.",
    )
    flags.DEFINE_integer(
        "tokenizer_documents", tokenizer_training.DOCUMENTS, "Images to train the tokenizer on."
    )
    flags.DEFINE_enum(
        "tokenizer_kind",
        "bpe",
        ["bpe", "codewords"],
        "Train it on bytes, as the paper, or on the code words of JPEG (then 2,048 or more).",
    )
    flags.DEFINE_boolean("retry_rejected", False, "Take again what was rejected, only that.")
    flags.DEFINE_integer("workers", 0, "Worker processes; 0: one a core.")
    flags.DEFINE_integer("task", 0, "This task of an array job, from 0.")
    flags.DEFINE_integer("num_tasks", 1, "Tasks of the array job.")
    flags.DEFINE_enum("launcher", "pool", ["pool", "beam"], "Who makes the shards.")
    flags.DEFINE_float(
        "setup_timeout", SETUP_TIMEOUT, "Seconds that tasks wait for task 0 to set the folder up."
    )
    flags.mark_flag_as_required("config")


def main(arguments: Sequence[str]) -> None:
    if flags.FLAGS.launcher != "beam":
        command.no_arguments(arguments)
    print(_summary(prepare(**_from_flags(arguments[1:]))))


if __name__ == "__main__":
    _define_flags()
    command.run(main, ShardError, OSError, ImportError)
