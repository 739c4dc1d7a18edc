"""What a run trains on and is judged on, as its configuration names it."""

from __future__ import annotations

from collections.abc import Sequence

from etils import epath
from ml_collections import ConfigDict

from data_pipelines import representations
from data_pipelines.loading.joined_shards import JoinedShards, Stages
from data_pipelines.loading.loader import Loader
from data_pipelines.prepare import prepare
from data_pipelines.representations.base import Representation
from data_pipelines.shards.reader import read_manifest
from jpeglm_jax.parallel import distributed
from jpeglm_jax.training import checkpoint


def prepare_here(config: ConfigDict, workdir: epath.Path) -> epath.Path:
    """Prepares `config.data.source` into the workdir, once; the other processes wait for it."""
    folder = workdir / "data"
    distributed.main_first(
        lambda: prepare(
            source=config.data.source,
            representation=config.representation.to_dict(),
            out=folder,
            conditional=config.data.conditional,
            copies=config.data.copies,
            augment=config.data.augment.to_dict(),
            heldout=config.data.heldout,
        )
    )
    return folder


def shard_folders(config: ConfigDict) -> list[str]:
    """The prepared folders that the run names; none if it prepares its own."""
    return [folder for folder in config.data.shards.split(",") if folder]


def held_out_documents(config: ConfigDict, folders: Sequence[epath.PathLike]) -> JoinedShards:
    """What the run is judged on. Raises ValueError if no image was held out."""
    splits = [read_manifest(folder)["splits"] for folder in folders]
    if not any(split.get("heldout", {}).get("documents") for split in splits):
        images = sum(split["train"]["images"] for split in splits)
        raise ValueError(
            f"{' and '.join(map(str, folders))}: no held-out documents, which a run is judged on: "
            f"data.heldout = {config.data.heldout} keeps none of {images:,} images from "
            "training. Raise it, in a new workdir (or prepare the shards again)"
        )
    return JoinedShards(folders, "heldout", config.data.on_damage)


def check_representation(config: ConfigDict, found: Representation) -> None:
    """Refuses shards that are not what the configuration describes.

    The tokenizer and the labels are the shards' own: preparation may have trained the one and
    found the other.
    """
    expected = representations.make(**{**config.representation, "tokenizer": "bytes"})
    ours, theirs = expected.to_config(), found.to_config()
    del ours["tokenizer"], theirs["tokenizer"]
    checkpoint.refuse_difference(ours, theirs, "representation", "the folder of shards")


def make_loader(
    config: ConfigDict, documents: JoinedShards, label_dropout: float, mixture: Stages = ()
) -> Loader:
    """Documents -> batches of packed rows.

    `mixture`: (first row, weights) of each stage; see `JoinedShards.plan`.
    """
    plan = documents.plan(
        row_length=config.row_length,
        mode=config.data.packing,
        too_long=config.data.too_long,
        seed=config.seed,
        stages=mixture,
    )
    return Loader(
        documents.parts,
        plan,
        batch_size=config.batch_size,
        seed=config.seed,
        label_dropout=label_dropout,
    )
