"""Example: python -m jpeglm_jax.convert to_hf --src=runs/jpeg-digits --dst=digits-hf

Writes a trained model as `transformers`, vLLM and others read it (to_hf), or reads a Llama
checkpoint of `transformers` into a folder that generate, the evaluations and train (init_from) take
(from_hf):

  python -m jpeglm_jax.convert from_hf --src=jpeg-lm-reimplementation --dst=runs/jpeg-lm

Of a foreign checkpoint the codec's settings are not known; they, and how to sample, come from
--config (--config.representation.quality=50 changes one). Weights pass one layer of one parameter
at a time, so that memory holds far less than the model.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from absl import app, flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from data_pipelines import representations
from data_pipelines.representations.base import CONFIG_FILE as REPRESENTATION_FILE
from data_pipelines.representations.base import Representation
from data_pipelines.representations.tokenizer import TOKENIZER_FILE
from jpeglm_jax.huggingface import ConversionError, card, safetensors, weights
from jpeglm_jax.huggingface import config as hf_config
from jpeglm_jax.huggingface import tokenizer as hf_tokenizer
from jpeglm_jax.huggingface.weights import Weight
from jpeglm_jax.model.config import ModelConfig
from jpeglm_jax.training import checkpoint, streamed_checkpoint
from jpeglm_jax.training.streamed_checkpoint import Streamed

SHARD_BYTES = 4_000_000_000  # the largest file of an exported model
_READ_BYTES = 1 << 29  # of a parameter, read together; a chunk that spans layers is read once then


def from_hf(
    src: epath.PathLike,
    dst: epath.PathLike,
    config: ConfigDict,
    *,
    seq_len: int = 0,
    drop_unused_ids: bool = False,
) -> dict[str, Any]:
    """Reads a Llama checkpoint of `transformers` into a workdir.

    Args:
      src: folder with config.json, safetensors, and tokenizer.model (or the representation.json
        that `to_hf` wrote, which then says what tokens mean instead of `config`).
      dst: a new folder.
      config: what the checkpoint does not tell: the settings of the representation, how to sample.
        Its model is replaced by the checkpoint's.
      seq_len: the context; 0 takes max_position_embeddings.
      drop_unused_ids: leave out the rows of embedding and head past the tokenizer's ids, instead
        of refusing them. What probability they had then goes to the others.

    Returns:
      What was read: `parameters`, `dtype` (as stored), `seq_len`, `dropped_ids`.

    Raises:
      ConversionError, ValueError: the checkpoint is damaged, or holds what our model does not. All
        of it is checked before anything is written.
    """
    src, dst = epath.Path(src), _new_folder(dst)
    described = hf_config.read(src)
    representation = _representation(src, config)
    tensors = safetensors.open_folder(src)
    weights.check(described.model, tensors)
    dropped = _unused_ids(described.model, representation, drop_unused_ids)

    model = dataclasses.replace(described.model, vocab_size=representation.vocab_size)
    config = _config_of_run(config, model, representation, seq_len or described.seq_len, dst)
    dtypes = {tensors[name].dtype for weight in weights.table(model) for name in weight.names}
    dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
    meta = {
        "step": 0,
        "config": config.to_dict(),
        "representation": representation.to_config(),
        "model": checkpoint.shape_of(config),
        "data": {"batches": "none: the weights were converted"},
        "converted": {"from": "transformers", "dtype": dtype},
        "versions": checkpoint.versions(),
    }
    representation.save(dst)
    (dst / "config.json").write_text(config.to_json_best_effort(indent=2) + "\n")
    with _progress(model) as bar:

        def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
            bar.update()
            return tensors[name].read()[: shape[0]].astype(np.float32)

        streamed_checkpoint.save(
            dst, weights.tree(model, lambda weight: streamed(weight, read)), meta
        )
    return {
        "parameters": num_parameters(model),
        "dtype": dtype,
        "seq_len": config.seq_len,
        "dropped_ids": dropped,
    }


def streamed(weight: Weight, read: weights.Reader) -> Streamed:
    """A parameter as an array that comes layer by layer, float32."""
    part_shape = (1, *weight.shape[1:]) if weight.stacked else weight.shape
    parts = functools.partial(weight.parts, read)
    return Streamed(weight.shape, np.dtype(np.float32), part_shape, parts)


def _new_folder(dst: epath.PathLike) -> epath.Path:
    dst = epath.Path(dst)
    if dst.exists() and (not dst.is_dir() or any(dst.iterdir())):
        raise ConversionError(f"{dst} is there already; give a new folder, or remove this one")
    return dst


def _representation(src: epath.Path, config: ConfigDict) -> Representation:
    """What the tokens of a checkpoint mean."""
    if (src / REPRESENTATION_FILE).is_file():
        return representations.load(src)
    model = src / TOKENIZER_FILE
    if not model.is_file():
        raise ConversionError(
            f"{src} has neither {TOKENIZER_FILE} nor {REPRESENTATION_FILE}; expected the "
            "SentencePiece model that the weights were trained with beside them"
        )
    return representations.make(**{**config.representation.to_dict(), "tokenizer": str(model)})


def _unused_ids(model: ModelConfig, representation: Representation, drop: bool) -> int:
    """How many rows of the embedding stand for no token."""
    rows, ids = model.vocab_size, representation.vocab_size
    if rows < ids or (rows > ids and not drop):
        raise ConversionError(
            f"config.json states a vocabulary of {rows}, but the tokenizer has {ids} ids; expected "
            "the tokenizer that the weights were trained with"
            + (". To leave out the rows past its ids, pass --drop_unused_ids" * (rows > ids))
        )
    return rows - ids


def _config_of_run(
    config: ConfigDict,
    model: ModelConfig,
    representation: Representation,
    seq_len: int,
    dst: epath.Path,
) -> ConfigDict:
    """The configuration of a run that would have made these weights, as far as it is known."""
    config = ConfigDict(config.to_dict())
    shape = checkpoint.shape_of(config)
    config.model.update({name: getattr(model, name) for name in shape})
    config.seq_len = seq_len
    config.optimizer.ema = 0.0  # the weights are what there is, averaged or not
    config.data.conditional = representation.num_labels > 0
    options = representation.to_config()
    tokenizer = options.pop("tokenizer", {})
    config.representation = ConfigDict(options)
    trained = tokenizer.get("model_sha256") or "kind" not in tokenizer
    config.representation.tokenizer = str(dst / TOKENIZER_FILE) if trained else tokenizer["kind"]
    return config


def to_hf(
    src: epath.PathLike,
    dst: epath.PathLike,
    *,
    dtype: str = "auto",
    step: int | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, Any]:
    """Writes the weights of a run (their moving average, where it kept one) for `transformers`.

    Args:
      src: the run's workdir.
      dst: a new folder: config.json, generation_config.json, safetensors, tokenizer,
        representation.json and a model card. config.json comes last, so that an unfinished folder
        is not taken for a model.
      dtype: "float32", "bfloat16" or "float16"; "auto" is what the weights were read from, if they
        were converted, and float32 if they were trained here.
      step: which checkpoint; default the newest.
      shard_bytes: size of a file of weights, at most.

    Returns:
      What was written: `parameters`, `dtype`, `files` (of weights), `step`.

    Raises:
      CheckpointError: there is no such run or checkpoint.
      ConversionError: `transformers`' Llama cannot hold the model (qk-norm, say), or the type not
        its values.
    """
    dst = _new_folder(dst)
    run = checkpoint.describe(src, step)
    model, config, representation = run.model("cpu"), run.config, run.representation
    if dtype == "auto":
        dtype = run.meta.get("converted", {}).get("dtype", "float32")
    table = weights.table(model)
    described = hf_config.to_json(
        model,
        seq_len=config.seq_len,
        bos=representation.bos,
        eos=representation.eos,
        dtype=dtype,
    )
    names = [(name, weight.tensor_shape) for weight in table for name in weight.names]
    shards = safetensors.plan(names, dtype, shard_bytes)
    shapes = weights.tree(model, lambda weight: jax.ShapeDtypeStruct(weight.shape, np.float32))
    item = "ema" if run.averaged else "params"
    stores = streamed_checkpoint.open_arrays(src, run.step, item, shapes)

    dst.mkdir(parents=True, exist_ok=True)
    with _progress(model) as bar:
        safetensors.write(dst, shards, dtype, _tensors(table, stores, bar))
    representation.save(dst)
    tokenizer = getattr(representation, "tokenizer", None)
    if tokenizer is not None:
        hf_tokenizer.write(dst, tokenizer, config.seq_len)
    parameters = num_parameters(model)
    card.write(
        dst,
        model,
        representation,
        parameters=parameters,
        seq_len=config.seq_len,
        dtype=dtype,
    )
    hf_config.write_generation(
        dst,
        seq_len=config.seq_len,
        bos=representation.bos,
        eos=representation.eos,
        **{name: config.sample[name] for name in ("temperature", "top_k", "top_p")},
    )
    (dst / hf_config.CONFIG_FILE).write_text(described)
    return {"parameters": parameters, "dtype": dtype, "files": len(shards), "step": run.step}


def _tensors(table: Sequence[Weight], stores: Any, bar: tqdm.tqdm) -> Iterator[np.ndarray]:
    """All tensors in `transformers`' layout, in the order of the table."""
    for weight in table:
        store = stores
        for key in weight.path:
            store = store[key]
        layer_bytes = 4 * math.prod(weight.shape[1:])
        together = max(1, _READ_BYTES // layer_bytes) if weight.stacked else weight.shape[0]
        for first in range(0, weight.shape[0], together):
            last = min(first + together, weight.shape[0])
            part = store[first:last].read().result()
            for ours in part if weight.stacked else [part]:
                bar.update()
                yield weight.tensor(ours)


def num_parameters(model: ModelConfig) -> int:
    """Number of weights of a plain Llama."""
    return sum(math.prod(weight.shape) for weight in weights.table(model))


def _progress(model: ModelConfig) -> tqdm.tqdm:
    return tqdm.tqdm(total=sum(len(w.names) for w in weights.table(model)), unit="tensor")


def main(arguments: Sequence[str]) -> None:
    checkpoint.quiet_libraries()
    jax.config.update("jax_platforms", "cpu")  # nothing is computed; leave accelerators alone
    values = flags.FLAGS
    try:
        print(_convert(arguments[1:], values))
    except ValueError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
    except (OSError, KeyboardInterrupt) as error:
        reason = str(error) or "interrupted"
        raise SystemExit(f"{reason}; {values.dst} is not finished, remove it") from None


def _convert(direction: Sequence[str], values: flags.FlagValues) -> str:
    """Does what the command line asks for; returns what to say of it."""
    if direction == ["to_hf"]:
        done = to_hf(values.src, values.dst, dtype=values.dtype, step=values.step)
        return (
            f"{done['parameters']:,} parameters of step {done['step']}, in {done['dtype']}, are in "
            f"{values.dst}; how to use them: {epath.Path(values.dst) / card.CARD_FILE}"
        )
    if direction == ["from_hf"]:
        done = from_hf(
            values.src,
            values.dst,
            values.config,
            seq_len=values.seq_len,
            drop_unused_ids=values.drop_unused_ids,
        )
        dropped = f", without {done['dropped_ids']} unused ids" if done["dropped_ids"] else ""
        return (
            f"{done['parameters']:,} parameters, stored in {done['dtype']}, context "
            f"{done['seq_len']:,}{dropped}, are in {values.dst}; to sample: "
            f"python -m jpeglm_jax.generate --workdir={values.dst} --out=DIR"
        )
    found = " ".join(direction) or "nothing"
    raise ConversionError(f"found {found}, expected one of to_hf and from_hf; see --help")


def _define_flags() -> None:
    flags.DEFINE_string("src", None, "Folder to read.", required=True)
    flags.DEFINE_string("dst", None, "Folder to write; a new one.", required=True)
    flags.DEFINE_enum(
        "dtype",
        "auto",
        ["auto", *safetensors.DTYPES],
        "to_hf: type of the weights; auto: as they came, else float32.",
    )
    flags.DEFINE_integer("step", None, "to_hf: which checkpoint; default the newest.")
    flags.DEFINE_integer("seq_len", 0, "from_hf: the context; 0: as config.json states it.")
    flags.DEFINE_bool(
        "drop_unused_ids", False, "from_hf: leave out embeddings past the tokenizer's ids."
    )
    config_flags.DEFINE_config_file(
        "config", "configs/jpeg.py:7b", "from_hf: what the checkpoint does not tell."
    )
    flags.FLAGS.set_gnu_getopt()  # flags may follow to_hf or from_hf


if __name__ == "__main__":
    _define_flags()
    app.run(main)
