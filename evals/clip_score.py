"""Example: python -m evals.clip_score --generated=samples --out=evaluation \\
    --weights=clip-vit-large-patch14-336/model.safetensors \\
    --template="a photo of a {}" --class_names=names.txt

Computes the CLIP score of images and their captions: 100 times the cosine of their embeddings,
zero where it is negative, averaged over the images (Hessel et al., arXiv 2104.08718, who write 2.5
in the place of 100). Writes clip_score.json. See docs/evaluation.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from etils import epath

from data_pipelines import representations
from data_pipelines.representations.base import CONFIG_FILE, Representation
from data_pipelines.shards.storage import ShardError
from data_pipelines.utils import command
from data_pipelines.utils.cpus import num_cpus
from evals.features import features
from evals.features.clip import network
from evals.features.clip.tokenizer import ClipTokenizer
from evals.features.weights import Weights, is_url, read
from evals.inputs import captions, images
from evals.inputs.codec import GeneratedImages
from evals.inputs.images import OPEN_AS, Images, OpenAs
from evals.reporting import settings
from evals.reporting.numbers import with_error
from evals.reporting.results import command_line, make_result, require_result, write_json
from jpeglm_jax.generation.manifest import MANIFEST, is_unfinished
from jpeglm_jax.parallel import sharding
from jpeglm_jax.training import checkpoint

SCALE = 100
_TEXT_BATCH = 64
# Flags of the command, in the order of a printed command line.
_FLAGS = (
    *("generated", "captions", "template", "class_names", "representation", "open_as"),
    *("weights", "tokenizer", "batch_size", "out"),
)


def clip_score(
    shown: Images,
    texts: Sequence[str],
    out: epath.PathLike,
    *,
    weights: Weights,
    tokenizer: ClipTokenizer,
    batch_size: int = 32,
    command: str = "python -m evals.clip_score",
) -> dict[str, Any]:
    """Computes the CLIP score of images and their captions.

    Args:
      shown: the images.
      texts: a caption for each image.
      out: folder to write: `generated/` with features, and clip_score.json.
      weights: of CLIP.
      tokenizer: of the same CLIP.
      batch_size: images per call of the network.
      command: that gives the result again.

    Returns:
      The contents of clip_score.json.

    Raises:
      SettingsError: clip_score.json of `out` is another program's.
      WeightsError, FeatureError: unusable weights; no image can be read.
    """
    out = epath.Path(out)
    require_result(out / "clip_score.json")
    distinct = sorted(set(texts))
    embeddings = dict(zip(distinct, embed(distinct, weights, tokenizer), strict=True))
    extractor = network.extractor(weights)
    found = features.extract(shown, extractor, out / "generated", batch_size=batch_size)
    by_key = {shown.key(number): text for number, text in enumerate(texts)}
    captions_of_found = [by_key[key] for key in found.keys]  # without those that were rejected
    theirs = _unit(np.stack([embeddings[text] for text in captions_of_found]))
    scores = SCALE * np.maximum((_unit(found.main) * theirs).sum(1), 0)
    n = len(scores)
    validity = shown.validity_of if isinstance(shown, GeneratedImages) else None
    sampled = settings.of_generation(shown.name) if isinstance(shown, GeneratedImages) else {}
    result = make_result(
        "clip_score",
        command,
        {
            "generated": shown.name,
            "n_generated": n,
            "validity": validity,
            "open_as": shown.metadata.get("open_as"),
            **settings.of_features(found.metadata, found.main.shape[1]),
            **sampled,
            "tokenizer_sha256": tokenizer.sha256,
            "captions_sha256": hashlib.sha256("\n".join(texts).encode()).hexdigest(),
            "first_caption": texts[0],
            "scale": SCALE,
        },
        {
            "clip_score": float(scores.mean()),
            "clip_score_standard_error": float(scores.std(ddof=1) / n**0.5) if n > 1 else None,
            "n_generated": n,
            "n_captions": len(set(captions_of_found)),
            "codec": shown.outcome.to_json() if isinstance(shown, GeneratedImages) else None,
            "rejected": {"generated": [list(pair) for pair in found.rejected]},
        },
        versions=checkpoint.versions(),
    )
    if jax.process_index() == 0:
        write_json(out / "clip_score.json", result)
    return result


def embed(texts: Sequence[str], weights: Weights, tokenizer: ClipTokenizer) -> np.ndarray:
    """Embeddings of texts, float32 [n, d], not normalised. Raises WeightsError."""
    params = network.load(weights.tensors, "text")
    length = network.context_length(params)
    apply = jax.jit(network.text_embedding, static_argnames="end")
    tokens = np.stack([tokenizer.encode(text, length) for text in texts])
    if tokens.max() >= len(params["tokens"]):
        raise ValueError(
            f"the tokenizer has the id {tokens.max()}, but the weights have embeddings of "
            f"{len(params['tokens'])} tokens; use the tokenizer that lies with the weights"
        )
    parts = []
    for start in range(0, len(tokens), _TEXT_BATCH):
        part = tokens[start : start + _TEXT_BATCH]
        padded = np.concatenate([part, np.repeat(part[-1:], _TEXT_BATCH - len(part), axis=0)])
        parts.append(np.asarray(apply(params, padded, end=tokenizer.end))[: len(part)])
    return np.concatenate(parts)


def _unit(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def _open(where: str, representation: str | None, open_as: OpenAs) -> Images:
    folder = epath.Path(where) if ":" not in where else None
    if folder is None or not (folder / MANIFEST).is_file():
        found = [] if representation is None else ["--representation"]
        command.refuse_without_effect(found, "with images that no generation job wrote")
        if folder is not None and is_unfinished(folder):
            raise ValueError(
                f"{folder} holds a generation job that has not finished: run its command again, "
                "then evaluate"
            )
        return images.open_images(where, open_as)
    loaded: Representation | None = None
    if representation or (folder / CONFIG_FILE).is_file():
        loaded = representations.load(representation or where)
    return GeneratedImages(folder, loaded, open_as)


def main(arguments: Sequence[str]) -> None:
    command.no_arguments(arguments)
    checkpoint.quiet_libraries()
    sharding.split_cpu(num_cpus())
    values = flags.FLAGS
    if (values.captions is None) == (values.template is None):
        raise ValueError("give either --captions or --template")
    if values.template is None:
        found = command.given(values, "class_names")
        command.refuse_without_effect(found, "with --captions; it is for --template")
    if values.tokenizer is None and is_url(values.weights):
        raise ValueError("give --tokenizer=FOLDER with --weights at a URL")
    shown = _open(values.generated, values.representation, values.open_as)
    if values.captions is not None:
        texts = captions.read(values.captions, shown)
    else:
        names = (
            epath.Path(values.class_names).read_text().splitlines() if values.class_names else ()
        )
        texts = captions.of_classes(shown, values.template, names)
    network.require_openais(values.weights)
    tokenizer = ClipTokenizer.load(values.tokenizer or epath.Path(values.weights).parent)
    result = clip_score(
        shown,
        texts,
        values.out,
        weights=read(values.weights),
        tokenizer=tokenizer,
        batch_size=values.batch_size,
        command=command_line(
            "evals.clip_score",
            {name: values[name].value for name in _FLAGS},
            {"open_as": "viewer", "batch_size": 32},
        ),
    )
    error = result["clip_score_standard_error"]
    print(
        f"CLIP score {with_error(result['clip_score'], error)}"
        f", {result['n_generated']} images, {result['n_captions']} captions"
    )


def _define_flags() -> None:
    flags.DEFINE_string(
        "generated",
        None,
        "Images: a folder (of a generate job or any), tar, .array_record, .npz, ...",
        required=True,
    )
    flags.DEFINE_string("out", None, "Folder to write.", required=True)
    flags.DEFINE_string("weights", None, "CLIP's model.safetensors, file or URL.", required=True)
    flags.DEFINE_string(
        "tokenizer",
        None,
        "Folder with tokenizer.json, or vocab.json and merges.txt; default that of the weights.",
    )
    flags.DEFINE_string(
        "captions",
        None,
        "File of captions: .json (image name -> caption), or a line for each image in order.",
    )
    flags.DEFINE_string("template", None, "Instead: a caption with {} for the class's name.")
    flags.DEFINE_string("class_names", None, "File with the name of a class in each line.")
    flags.DEFINE_string("representation", None, "Folder with the model's representation.json.")
    flags.DEFINE_enum(
        "open_as", "viewer", OPEN_AS, "How image files become pixels, as in evals.fid."
    )
    flags.DEFINE_integer("batch_size", 32, "Images per call of the network.", lower_bound=1)


if __name__ == "__main__":
    _define_flags()
    command.run(main, ShardError)
