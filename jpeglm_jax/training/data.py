"""What a run trains on and is evaluated on, as its configuration names it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from etils import epath
from ml_collections import ConfigDict

from data_pipelines import representations
from data_pipelines.loading.joined_shards import (
    JoinedShards,
    Schedule,
    mixture_schedule,
    shard_folders,
)
from data_pipelines.loading.loader import Loader
from data_pipelines.prepare import prepare
from data_pipelines.representations.base import Representation
from data_pipelines.shards.reader import read_manifest
from jpeglm_jax.parallel import distributed
from jpeglm_jax.training import checkpoint


@dataclasses.dataclass(frozen=True)
class RunData:
    """The two splits of a run.

    Attributes:
      train, eval: documents of each split.
      train_loader, eval_loader: their batches.
    """

    train: JoinedShards
    eval: JoinedShards
    train_loader: Loader
    eval_loader: Loader

    @property
    def representation(self) -> Representation:
        """What the tokens mean."""
        return self.train.representation

    @property
    def max_documents(self) -> int:
        """No row of either split holds more documents, padding counted as one."""
        loaders = self.train_loader, self.eval_loader
        return 1 + max(loader.plan.max_documents for loader in loaders)

    @property
    def longest_document(self) -> int:
        """Positions of the longest document of either split with its start and end token.

        At most the sequence length: what is longer was dropped or split.
        """
        loaders = self.train_loader, self.eval_loader
        longest = max(int(loader.plan.lengths.max()) + 1 for loader in loaders)
        return min(longest, self.train_loader.plan.seq_len)

    @property
    def num_damaged(self) -> int:
        """Documents of both splits that were skipped as damaged so far."""
        return self.train.num_damaged + self.eval.num_damaged


def open_data(config: ConfigDict, workdir: epath.Path) -> RunData:
    """The documents of a run, prepared in the workdir first unless the run names shards.

    Args:
      config: the run's.
      workdir: the run's folder.

    Raises:
      ShardError, FileNotFoundError, SourceError: shards or a source that cannot be read.
      ValueError: no documents to train or to evaluate on, or shards of another representation.
    """
    folders = run_folders(config.data, workdir)
    if not shard_folders(config.data.shards):
        prepare_here(config, workdir)
    train = JoinedShards(folders, "train", config.data.on_damage)
    check_representation(config.representation, train.representation)
    eval_split = eval_documents(config.data, folders)
    mixture = mixture_schedule(config.data.mixture_weights, config.batch_size)
    return RunData(
        train,
        eval_split,
        make_loader(config, train, config.data.label_dropout, mixture),
        make_loader(config, eval_split, label_dropout=0.0),
    )


def prepare_here(config: ConfigDict, workdir: epath.Path) -> None:
    """Prepares `config.data.source` into the workdir, once; the other processes wait for it."""
    (folder,) = run_folders(config.data, workdir)
    distributed.main_first(
        lambda: prepare(
            source=config.data.source,
            representation=config.representation.to_dict(),
            out=folder,
            conditional=config.data.conditional,
            copies=config.data.copies,
            augment=config.data.augment.to_dict(),
            eval_fraction=config.data.eval_fraction,
            train_tokenizer=config.data.train_tokenizer.to_dict(),
        )
    )


def run_folders(data: ConfigDict, workdir: epath.PathLike) -> list[str]:
    """The folders of shards that a run reads: those that it names, or the one that it prepares.

    Args:
      data: `config.data`.
      workdir: the run's folder.
    """
    return shard_folders(data.shards) or [str(epath.Path(workdir) / "data")]


def eval_documents(data: ConfigDict, folders: Sequence[epath.PathLike]) -> JoinedShards:
    """The eval split of the folders. Raises ValueError if it is empty in all of them.

    Args:
      data: `config.data`.
      folders: of shards.
    """
    splits = [read_manifest(folder)["splits"] for folder in folders]
    if not any(split.get("eval", {}).get("documents") for split in splits):
        images = sum(split["train"]["images"] for split in splits)
        raise ValueError(
            f"{' and '.join(map(str, folders))}: the eval split is empty: data.eval_fraction = "
            f"{data.eval_fraction} takes none of {images:,} images. Raise it, in a new workdir "
            "(or prepare the shards again)"
        )
    return JoinedShards(folders, "eval", data.on_damage)


def check_representation(configured: ConfigDict, found: Representation) -> None:
    """Refuses shards that are not what the configuration describes.

    Labels and what was trained are the shards' own: preparation found the one and trained the
    other. But a file that the configuration names, as of a learned tokenizer, must be theirs.

    Args:
      configured: `config.representation`.
      found: the shards' own.
    """
    shards_own = ("num_labels", "tokenizer")  # a tokenizer has their labels too
    prepared = [
        name for name in found.prepared_options if name in shards_own or not configured.get(name)
    ]
    options = {name: value for name, value in configured.items() if name not in prepared}
    ours, theirs = representations.make(**options).to_config(), found.to_config()
    for name in prepared:
        del ours[name], theirs[name]
    checkpoint.refuse_difference(ours, theirs, "representation", "the folder of shards")


def make_loader(
    config: ConfigDict, documents: JoinedShards, label_dropout: float, mixture: Schedule = ()
) -> Loader:
    """Documents -> batches of packed rows.

    `mixture`: (first row, weights) of each stage; see `JoinedShards.plan`.
    """
    plan = documents.plan(
        seq_len=config.seq_len,
        mode=config.data.packing,
        too_long=config.data.too_long,
        seed=config.seed,
        schedule=mixture,
    )
    return Loader(
        documents.parts,
        plan,
        batch_size=config.batch_size,
        seed=config.seed,
        label_dropout=label_dropout,
    )
