"""Example: python -m jpeglm_jax.convert to_hf --workdir=runs/jpeg-digits --hf_dir=digits-hf

to_hf writes the weights of a run as a Hugging Face checkpoint, for `transformers`, vLLM and others.
from_hf converts a Llama checkpoint of Hugging Face to the folder of a run, for generate, the
evaluations and train (init_from):

  python -m jpeglm_jax.convert from_hf --hf_dir=jpeg-lm-reimplementation --workdir=runs/jpeg-lm

A Hugging Face checkpoint does not contain the settings of the codec: they and the sampling
parameters come from --config (--config.representation.quality=50 changes one). Weights are streamed
one layer of one parameter at a time, so that memory holds far less than the model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Collection, Iterator, Sequence
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
from data_pipelines.utils import command
from jpeglm_jax.generation.sampling import SamplingParams
from jpeglm_jax.huggingface import ConversionError, card, safetensors, weights
from jpeglm_jax.huggingface import config as hf_config
from jpeglm_jax.huggingface import generation as hf_generation
from jpeglm_jax.huggingface import tokenizer as hf_tokenizer
from jpeglm_jax.huggingface.weights import Weight
from jpeglm_jax.model.config import ModelConfig
from jpeglm_jax.training import checkpoint, streamed_checkpoint
from jpeglm_jax.training.streamed_checkpoint import Streamed

SHARD_BYTES = 4_000_000_000  # max size of a file of weights
_READ_BYTES = 1 << 29  # of a parameter, read at once: a chunk of several layers is read once


def from_hf(
    hf_dir: epath.PathLike,
    workdir: epath.PathLike,
    config: ConfigDict,
    *,
    seq_len: int = 0,
    drop_unused_ids: bool = False,
    keep_sampling: Collection[str] = (),
) -> dict[str, Any]:
    """Converts a Hugging Face Llama checkpoint to the folder of a run.

    Args:
      hf_dir: folder with config.json, safetensors and tokenizer.model. A representation.json that
        `to_hf` wrote replaces `config.representation`.
      workdir: a new folder.
      config: the settings that the checkpoint does not contain, above all the representation. Its
        model is replaced by the checkpoint's, and its sampling parameters by those of
        generation_config.json, if that states how to sample.
      seq_len: sequence length; 0 takes max_position_embeddings.
      drop_unused_ids: drop the rows of embedding and head past the tokenizer's ids instead of
        refusing them. Their probability then goes to the other tokens.
      keep_sampling: names of sampling parameters that are those of `config` in any case.

    Returns:
      `parameters` (their number), `dtype` (as stored), `seq_len`, `dropped_ids`, `unused` (names of
      values of generation_config.json that our sampling has not).

    Raises:
      ConversionError, ValueError: the checkpoint is damaged, or has tensors or values that our
        model has not, or ids that are not the tokenizer's: checked before anything is written. Or
        a weight is NaN or infinite: what was written by then is removed.
    """
    hf_dir, workdir = epath.Path(hf_dir), _new_folder(workdir)
    found = hf_config.read(hf_dir)
    representation = _representation(hf_dir, config)
    tensors = safetensors.open_folder(hf_dir)
    weights.check(found.model, tensors)
    dropped = _unused_ids(found.model, representation, drop_unused_ids)
    defaults = hf_generation.read(hf_dir)
    for name, ids in (
        (hf_config.CONFIG_FILE, found.ids),
        (hf_generation.GENERATION_FILE, defaults.ids),
    ):
        hf_config.require_ids(hf_dir / name, ids, representation.bos, representation.eos)
    if not 0 <= seq_len <= found.seq_len:
        raise ConversionError(
            f"seq_len is {seq_len:,}; expected at most max_position_embeddings, {found.seq_len:,}"
        )

    model = dataclasses.replace(found.model, vocab_size=representation.vocab_size)
    config = _run_config(config, model, representation, seq_len or found.seq_len, workdir)
    sampling = {k: v for k, v in defaults.sampling.items() if k not in keep_sampling}
    config.sample.update(sampling)
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
    with _removed_if_refused(workdir), _progress(model) as bar:
        representation.save(workdir)
        (workdir / "config.json").write_text(config.to_json_best_effort(indent=2) + "\n")

        def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
            bar.update()
            tensor = tensors[name].read()[: shape[0]].astype(np.float32)
            safetensors.require_finite(name, tensor)
            return tensor

        streamed_checkpoint.save(
            workdir, weights.tree(model, lambda weight: streamed(weight, read)), meta
        )
    return {
        "parameters": num_parameters(model),
        "dtype": dtype,
        "seq_len": config.seq_len,
        "dropped_ids": dropped,
        "unused": defaults.unused,
    }


@contextlib.contextmanager
def _removed_if_refused(folder: epath.Path) -> Iterator[None]:
    """Removes a new folder if a weight is refused while it is written."""
    try:
        yield
    except ConversionError:
        folder.rmtree(missing_ok=True)
        raise


def streamed(weight: Weight, read: weights.Reader) -> Streamed:
    """A parameter as an array that is read layer by layer, float32."""
    part_shape = (1, *weight.shape[1:]) if weight.stacked else weight.shape
    parts = functools.partial(weight.parts, read)
    return Streamed(weight.shape, np.dtype(np.float32), part_shape, parts)


def _new_folder(path: epath.PathLike) -> epath.Path:
    path = epath.Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConversionError(f"{path} exists; give a new folder, or remove this one")
    return path


def _representation(hf_dir: epath.Path, config: ConfigDict) -> Representation:
    """What the tokens of a checkpoint mean."""
    if (hf_dir / REPRESENTATION_FILE).is_file():
        return representations.load(hf_dir)
    model = hf_dir / TOKENIZER_FILE
    if not model.is_file():
        raise ConversionError(
            f"{hf_dir} has neither {TOKENIZER_FILE} nor {REPRESENTATION_FILE}; expected the "
            "SentencePiece model that the weights were trained with"
        )
    return representations.make(**{**config.representation.to_dict(), "tokenizer": str(model)})


def _unused_ids(model: ModelConfig, representation: Representation, drop: bool) -> int:
    """Number of rows of the embedding that stand for no token."""
    rows, ids = model.vocab_size, representation.vocab_size
    if rows < ids or (rows > ids and not drop):
        raise ConversionError(
            f"config.json states a vocabulary of {rows}, but the tokenizer has {ids} ids; expected "
            "the tokenizer that the weights were trained with"
            + (". To drop the rows past its ids, pass --drop_unused_ids" * (rows > ids))
        )
    return rows - ids


def _run_config(
    config: ConfigDict,
    model: ModelConfig,
    representation: Representation,
    seq_len: int,
    workdir: epath.Path,
) -> ConfigDict:
    """The configuration of a run with these weights, as far as it is known."""
    config = ConfigDict(config.to_dict())
    shape = checkpoint.shape_of(config)
    config.model.update({name: getattr(model, name) for name in shape})
    config.seq_len = seq_len
    config.optimizer.ema = 0.0  # there is one set of weights, averaged or not
    config.data.conditional = representation.num_labels > 0
    config.representation = ConfigDict(representation.to_options(workdir))
    return config


def to_hf(
    workdir: epath.PathLike,
    hf_dir: epath.PathLike,
    *,
    dtype: str = "auto",
    step: int | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, Any]:
    """Writes the weights of a run (their moving average, where it kept one) for `transformers`.

    Args:
      workdir: the run's folder.
      hf_dir: a new folder: config.json, generation_config.json, safetensors, tokenizer,
        representation.json and a model card. config.json is written last, so that an unfinished
        folder is not loaded as a model.
      dtype: "float32", "bfloat16" or "float16"; "auto" is the stored type of weights that were
        converted by `from_hf`, and float32 for trained ones.
      step: which checkpoint; default the newest.
      shard_bytes: max size of a file of weights.

    Returns:
      `parameters` (their number), `dtype`, `files` (of weights), `step`.

    Raises:
      CheckpointError: there is no such run or checkpoint.
      ConversionError: `transformers`' Llama cannot represent the model (such as qk-norm); or the
        type not its values, or a weight is NaN or infinite: what was written is then removed.
    """
    hf_dir = _new_folder(hf_dir)
    run = checkpoint.describe(workdir, step)
    model, config, representation = run.model("cpu"), run.config, run.representation
    if dtype == "auto":
        dtype = run.meta.get("converted", {}).get("dtype", "float32")
    table = weights.table(model)
    config_json = hf_config.to_json(
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
    stores = streamed_checkpoint.open_arrays(workdir, run.step, item, shapes)

    sampling_params = SamplingParams.from_config(config.sample)
    hf_dir.mkdir(parents=True, exist_ok=True)
    with _removed_if_refused(hf_dir), _progress(model) as bar:
        safetensors.write(hf_dir, shards, dtype, _tensors(table, stores, bar))
    representation.save(hf_dir)
    tokenizer = getattr(representation, "tokenizer", None)
    if tokenizer is not None:
        hf_tokenizer.write(hf_dir, tokenizer, config.seq_len)
    parameters = num_parameters(model)
    card.write(
        hf_dir,
        model,
        representation,
        parameters=parameters,
        seq_len=config.seq_len,
        dtype=dtype,
        guidance=sampling_params.guidance,
    )
    hf_generation.write(
        hf_dir,
        sampling_params,
        seq_len=config.seq_len,
        bos=representation.bos,
        eos=representation.eos,
    )
    (hf_dir / hf_config.CONFIG_FILE).write_text(config_json)
    return {"parameters": parameters, "dtype": dtype, "files": len(shards), "step": run.step}


def _tensors(table: Sequence[Weight], stores: Any, bar: tqdm.tqdm) -> Iterator[np.ndarray]:
    """All tensors in `transformers`' layout, in the order of the table."""
    for weight in table:
        store = stores
        for key in weight.path:
            store = store[key]
        layer_bytes = 4 * math.prod(weight.shape[1:])
        at_once = max(1, _READ_BYTES // layer_bytes) if weight.stacked else weight.shape[0]
        for first in range(0, weight.shape[0], at_once):
            last = min(first + at_once, weight.shape[0])
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
    jax.config.update("jax_platforms", "cpu")  # nothing is computed, so no accelerator is used
    values = flags.FLAGS
    try:
        print(_convert(arguments[1:], values))
    except ValueError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
    except (OSError, KeyboardInterrupt) as error:
        reason = str(error) or "interrupted"
        written = values.hf_dir if arguments[1:] == ["to_hf"] else values.workdir
        raise SystemExit(f"{reason}; {written} is not finished, remove it") from None


def _convert(direction: Sequence[str], values: flags.FlagValues) -> str:
    """Converts as the command line asks; returns the message to print."""
    given, refuse = command.given, command.refuse_without_effect
    if direction == ["to_hf"]:
        refuse(given(values, "seq_len", "drop_unused_ids", "config"), "with to_hf; see --help")
        done = to_hf(values.workdir, values.hf_dir, dtype=values.dtype, step=values.step)
        return (
            f"{done['parameters']:,} parameters of step {done['step']}, in {done['dtype']}, are in "
            f"{values.hf_dir}; how to use them: {epath.Path(values.hf_dir) / card.CARD_FILE}"
        )
    if direction == ["from_hf"]:
        refuse(given(values, "dtype", "step"), "with from_hf; see --help")
        overridden = config_flags.get_override_values(values["config"])
        done = from_hf(
            values.hf_dir,
            values.workdir,
            values.config,
            seq_len=values.seq_len,
            drop_unused_ids=values.drop_unused_ids,
            keep_sampling=[name.removeprefix("sample.") for name in overridden],
        )
        dropped = f", without {done['dropped_ids']} unused ids" if done["dropped_ids"] else ""
        unused = "".join(
            f". Not used: {name} of {hf_generation.GENERATION_FILE}" for name in done["unused"]
        )
        return (
            f"{done['parameters']:,} parameters, stored in {done['dtype']}, sequence length "
            f"{done['seq_len']:,}{dropped}, are in {values.workdir}; to sample: "
            f"python -m jpeglm_jax.generate --workdir={values.workdir} --out=DIR{unused}"
        )
    found = " ".join(direction) or "nothing"
    raise ConversionError(f"found {found}, expected one of to_hf and from_hf; see --help")


def _define_flags() -> None:
    flags.DEFINE_string(
        "workdir", None, "Folder of a run; from_hf writes it, a new one.", required=True
    )
    flags.DEFINE_string(
        "hf_dir", None, "Folder of a checkpoint for `transformers`; to_hf writes it.", required=True
    )
    flags.DEFINE_enum(
        "dtype",
        "auto",
        ["auto", *safetensors.DTYPES],
        "to_hf: type of the weights; auto: that of a converted checkpoint, else float32.",
    )
    flags.DEFINE_integer("step", None, "to_hf: which checkpoint; default the newest.")
    flags.DEFINE_integer("seq_len", 0, "from_hf: sequence length; 0: max_position_embeddings.", 0)
    flags.DEFINE_bool(
        "drop_unused_ids", False, "from_hf: drop embeddings past the tokenizer's ids."
    )
    config_flags.DEFINE_config_file(
        "config", "configs/jpeg.py:7b", "from_hf: representation and sampling."
    )
    flags.FLAGS.set_gnu_getopt()  # flags may follow to_hf or from_hf


if __name__ == "__main__":
    _define_flags()
    app.run(main)
