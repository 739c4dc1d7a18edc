"""generation_config.json of `transformers` <-> sampling parameters; `convert` reads and writes it.

`generate` of `transformers` and vLLM take their defaults from it.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from etils import epath

from jpeglm_jax.generation.sampling import SamplingParams
from jpeglm_jax.huggingface import ConversionError
from jpeglm_jax.huggingface.config import read_object, stated_ids

GENERATION_FILE = "generation_config.json"

# Defaults of `generate` for sampling parameters that the file lacks.
_DEFAULTS = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0}

# Values that change what is sampled and that our sampling has not, where they are not neutral.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "penalty_alpha": (0,),
    "repetition_penalty": (1,),
    "encoder_repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "typical_p": (1,),
    "top_h": (),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "bad_words_ids": ([],),
    "sequence_bias": ({}, []),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1,),
    "watermarking_config": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
}


class Defaults(NamedTuple):
    """The content of a generation_config.json.

    Attributes:
      sampling: values of `SamplingParams` by name; empty if the file does not state how to sample.
      ids: see `config.Described.ids`.
      unused: names of values that our sampling has not.
    """

    sampling: dict[str, Any]
    ids: dict[str, tuple[int, ...]]
    unused: list[str]


def read(folder: epath.Path) -> Defaults:
    """Reads a checkpoint's generation_config.json, if it has one.

    Without `do_sample` the file states nothing about sampling. With it, missing values are those of
    `generate`; without sampling the most likely token is taken (a temperature of 0).

    Raises ConversionError if the file is damaged or a value is out of range.
    """
    path = folder / GENERATION_FILE
    if not path.is_file():
        return Defaults({}, {}, [])
    values = {name: value for name, value in read_object(path).items() if value is not None}
    sampling: dict[str, Any] = {}
    if values.get("do_sample") is True:
        sampling = {name: values.get(name, default) for name, default in _DEFAULTS.items()}
    elif values.get("do_sample") is False:
        sampling = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    try:
        if sampling.get("temperature") == 0 and values["do_sample"]:
            raise ValueError("temperature is 0 with do_sample, which transformers refuses")
        SamplingParams(**sampling)
        ids = stated_ids(values)
    except (TypeError, ValueError) as error:
        raise ConversionError(f"{path}: {error}") from error
    unused = [
        name
        for name, neutral in _NEUTRAL.items()
        if values.get(name) is not None and values[name] not in neutral
    ]
    return Defaults(sampling, ids, unused)


def write(
    folder: epath.Path, sampling_params: SamplingParams, *, seq_len: int, bos: int, eos: int
) -> None:
    """Writes generation_config.json.

    Classifier-free guidance is omitted: that of `transformers` has another unconditional prompt.

    Args:
      folder: of the exported checkpoint.
      sampling_params: the run's. A temperature of 0 becomes `do_sample` false, for `generate`
        refuses a temperature of 0.
      seq_len: sequence length, with the start token.
      bos, eos: ids of the start token of an unlabelled document and of the end token.
    """
    values: dict[str, Any] = {
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": eos,  # tokens after the end of a document are not read
        "max_length": seq_len,
        "do_sample": sampling_params.temperature > 0,
    }
    if sampling_params.temperature > 0:
        values["temperature"] = float(sampling_params.temperature)
        values["top_k"] = int(sampling_params.top_k)  # 0: all, where the default would be 50
        values["top_p"] = float(sampling_params.top_p)
        if sampling_params.min_p > 0:
            values["min_p"] = float(sampling_params.min_p)
    text = json.dumps(values, indent=2, allow_nan=False)
    (folder / GENERATION_FILE).write_text(text + "\n")
