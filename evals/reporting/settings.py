"""Settings of a result: what its figures are of, in the names of `results.TITLES`.

Every job collects them here from the model, the folder of a generation job, and the features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from data_pipelines.loading.joined_shards import shard_folders
from jpeglm_jax.generation.manifest import read_settings
from jpeglm_jax.generation.sampling import SamplingParams
from jpeglm_jax.model.trained import TrainedModel
from jpeglm_jax.training.data import run_folders

_SAMPLING = ("seed", "temperature", "top_k", "top_p", "min_p", "guidance")


def of_model(model: TrainedModel) -> dict[str, Any]:
    """Which weights: run, step, digests of the weights and of the representation."""
    return {
        "workdir": model.workdir,
        "step": model.step,
        "model_weights": model.weights_digest,
        "representation": model.representation.fingerprint,
    }


def of_generation(folder: epath.PathLike) -> dict[str, Any]:
    """How the documents of a generation job were sampled; {} for a folder of no such job."""
    job = read_settings(folder)
    if job is None:
        return {}
    prompted = job["prompts"] is not None
    labels = job["labels"]
    return {
        "workdir": job["workdir"],
        "step": job["step"],
        "model_weights": job["weights"],
        "representation": job["representation"],
        **{name: job[name] for name in _SAMPLING},
        "constrained": job["constraint"] is not None,
        "label": "none" if labels == -1 else "given",
        "labels": None if labels == -1 else str(labels),
        "documents": "continuations" if prompted else "samples",
        "prompted": prompted,
        "prompt_share": job["prompt_share"],
    }


def of_sampling(sampling_params: SamplingParams, seed: int) -> dict[str, Any]:
    """How documents are sampled, of a job that samples itself."""
    return {name: getattr(sampling_params, name, seed) for name in _SAMPLING}


def of_features(metadata: Mapping[str, Any], dimensions: int) -> dict[str, Any]:
    """Which features: network, dimensions, resize, and hash of its weights.

    Args:
      metadata: of a `FeatureSet`; {} if another tool computed the features.
      dimensions: of a feature vector.
    """
    own = dict(metadata.get("settings", {}))
    own.pop("dims", None)
    found = {"network": metadata.get("extractor"), "dimensions": dimensions}
    found["resize"] = own.pop("resize", None)
    return found | {f"network_{name}": flat(value) for name, value in own.items()}


def of_sizes(sizes: Mapping[str, int]) -> str:
    """The sizes of a set of images: one, or how many there are and the most frequent."""
    first = next(iter(sizes))
    return first if len(sizes) == 1 else f"{len(sizes)} sizes, most often {first}"


def images_are(model: TrainedModel, name: str) -> str:
    """Which images a set is, for a model.

    Args:
      model: of a run.
      name: path or spec of the images, see `Documents.name`.

    Returns:
      "eval split", "training images" (of the run's shards), "source of the training images" (both
      are in it), or "other images".
    """
    data = model.config.data
    if data.source and _overlap(name, data.source):
        return "source of the training images"
    kind, _, rest = name.partition(":")
    folders, _, split = rest.rpartition(":")
    if kind != "shards" or model.workdir is None:
        return "other images"
    own = {_resolved(folder) for folder in run_folders(data, model.workdir)}
    if not {_resolved(folder) for folder in shard_folders(folders)} <= own:
        return "other images"
    return "eval split" if split == "eval" else "training images"


def _overlap(a: str, b: str) -> bool:
    """Whether two specs are of the same images, or one is of a folder inside the other's."""
    (kind_a, _, path_a), (kind_b, _, path_b) = a.partition(":"), b.partition(":")
    if a == b or kind_a != kind_b or kind_a not in ("folder", "tar"):
        return a == b
    ours, theirs = (epath.Path(_resolved(path)) for path in (path_a, path_b))
    return ours.is_relative_to(theirs) or theirs.is_relative_to(ours)


def _resolved(folder: epath.PathLike) -> str:
    return str(epath.Path(folder).expanduser().resolve())


def flat(value: Any) -> Any:
    """A setting of an extractor as text, number or a list of these."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={each}" for name, each in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [flat(each) for each in value]
    return value
