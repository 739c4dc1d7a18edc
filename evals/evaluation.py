"""Generated images against references: features, statistics, metrics, each gone on with.

What `python -m evals.fid` does, for other jobs to use.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import jax
from etils import epath

from data_pipelines.representations.base import Representation
from data_pipelines.utils.files import write_atomically
from evals import metrics
from evals.distances.statistics import FeatureError, Statistics
from evals.features import features
from evals.features.features import Extractor, FeatureSet
from evals.inputs import images
from evals.inputs.codec import MANIFEST, GeneratedImages
from evals.inputs.images import FittedImages, Images
from evals.metrics import Side
from jpeglm_jax.training import checkpoint

STEPS = ("features", "stats", "metrics")


def evaluate(
    generated: str,
    references: str | None,
    out: epath.PathLike,
    *,
    extractor: Extractor | None = None,
    representation: Representation | None = None,
    references_coded: str | None = None,
    floor: bool = True,
    until: str = "metrics",
    batch_size: int = 32,
    most_neighbours: int = metrics.NEIGHBOURS,
) -> dict[str, Any]:
    """Evaluates generated images against references.

    Args:
      generated: where they are: see `images.open_images`; a folder that `jpeglm_jax.generate`
        wrote; the folder of one side of an earlier evaluation (`OUT/generated`); or an .npz file
        of statistics, ours or of pytorch-fid or clean-fid.
      references: the same; None stops after the statistics of the generated ones.
      out: folder to write: `generated/`, `references/`, `references_coded/` with features and
        stats.npz, and metrics.json.
      extractor: what to look with; not needed where there are features or statistics already.
      representation: of the model. References are then cut and resized as it does, and looked at
        both as they are and after its codec.
      references_coded: statistics or features of the references after the codec, where
        `references` are no images.
      floor: whether to look at coded references at all.
      until: one of `STEPS`, the last that is done.
      batch_size: images that are looked at together.
      most_neighbours: images for precision, recall, density and coverage, at most, of each side.

    Returns:
      What is in metrics.json; {} if it stopped before.

    Raises:
      ValueError (of several kinds): inputs that cannot be used or do not belong together.
    """
    if until not in STEPS:
        raise ValueError(f"found until={until!r}, expected one of {', '.join(STEPS)}")
    out = epath.Path(out)
    judge = _Judge(out, extractor, batch_size, until)
    ours = judge.open(generated, representation)
    sides: dict[str, Images | Side] = {"generated": ours}
    if references is not None:
        theirs = judge.open(references, None)
        _refuse_overlap(ours, theirs)
        if representation is not None and _is_real(theirs):
            sides["references"] = FittedImages(theirs, representation, coded=False)
            if floor:
                sides["references_coded"] = FittedImages(theirs, representation, coded=True)
        else:
            sides["references"] = theirs
    if references_coded is not None:
        sides["references_coded"] = judge.open(references_coded, None)
    found = {name: judge.side(name, what) for name, what in sides.items()}
    if references is None or until != "metrics" or jax.process_index():
        return {}
    outcome = ours.outcome.to_json() if isinstance(ours, GeneratedImages) else None
    result = _metrics({name: side for name, side in found.items() if side}, most_neighbours)
    result = {**result, "codec": outcome, "versions": checkpoint.versions()}
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(out / "metrics.json", text.encode() + b"\n")
    return result


def _is_real(what: Images | Side) -> TypeGuard[Images]:
    """Whether these are images that have not been through a codec of ours."""
    return isinstance(what, Images) and "decoded_from" not in what.about


class _Judge:
    """From a place to features and statistics, through what is there already."""

    def __init__(self, out: epath.Path, extractor: Extractor | None, batch_size: int, until: str):
        self._out, self._extractor = out, extractor
        self._batch_size, self._until = batch_size, until

    def open(self, where: str, representation: Representation | None) -> Images | Side:
        """Images that are to be looked at, or a side that has been."""
        if where.endswith(".npz"):
            statistics, about = Statistics.load(where)
            return Side(where, statistics, about)
        folder = epath.Path(where)
        if ":" not in where and folder.is_dir():
            looked_at = self._features_in(folder)
            if looked_at is not None:
                return Side(where, _statistics(folder, looked_at), looked_at.about, looked_at)
            if (folder / MANIFEST).is_file():
                return GeneratedImages(folder, representation)
        return images.open_images(where)

    def _features_in(self, folder: epath.Path) -> FeatureSet | None:
        """The features in the folder of one side of an evaluation, if it is one."""
        complete = sorted(path.parent for path in folder.glob(f"features-*/{features.INDEX}"))
        if self._extractor is not None:
            wanted = features.folder_name(self._extractor)
            complete = [path for path in complete if path.name == wanted] or complete
        if len(complete) > 1:
            found = ", ".join(path.name for path in complete)
            raise FeatureError(f"{folder} holds several sets of features, {found}; name one")
        return FeatureSet.load(complete[0]) if complete else None

    def side(self, name: str, what: Images | Side) -> Side | None:
        """Looks at images, unless it has been done. None if the statistics are not wanted."""
        if isinstance(what, Side):
            return what
        if self._extractor is None:
            raise FeatureError(
                f"{what.name} has to be looked at, and there is nothing to look with: give "
                "--weights=FILE for the FID network, or --features"
            )
        folder = self._out / name
        found = features.extract(what, self._extractor, folder, batch_size=self._batch_size)
        if self._until == "features" or jax.process_index():
            return None
        return Side(what.name, _statistics(folder, found), found.about, found)


def _statistics(folder: epath.Path, found: FeatureSet) -> Statistics:
    """From stats.npz if they are of these features, else computed and written there."""
    path, about = folder / "stats.npz", json.loads(json.dumps({**found.about, "n": len(found)}))
    if path.is_file():
        statistics, stated = Statistics.load(path)
        if stated == about:
            return statistics
    try:
        statistics = Statistics.of(found.main)
    except FeatureError as error:
        raise FeatureError(f"{found.about['images']['from']}: {error}") from None
    statistics.save(path, about)
    return statistics


def _refuse_overlap(ours: Images | Side, theirs: Images | Side) -> None:
    """Raises FeatureError if files would be on both sides."""
    if not (isinstance(ours, Images) and isinstance(theirs, Images)):
        return
    for a in ours.paths:
        for b in theirs.paths:
            if Path(a).is_relative_to(b) or Path(b).is_relative_to(a):
                raise FeatureError(
                    f"the generated images in {a} and the references in {b} overlap; images would "
                    "be compared with themselves: keep them apart"
                )


def _metrics(sides: Mapping[str, Side], most_neighbours: int) -> dict[str, Any]:
    """The three figures that belong together, and what is to be known about them."""
    ours, theirs, coded = (
        sides.get(name) for name in ("generated", "references", "references_coded")
    )
    assert ours is not None and theirs is not None
    warnings = metrics.require_same_features(ours, theirs) + _warnings(ours, theirs)
    whole = metrics.compare(ours, theirs, most_neighbours)
    result: dict[str, Any] = {
        **whole.values,
        "n_generated": ours.n,
        "n_references": theirs.n,
        "not_computed": whole.not_computed,
    }
    if coded is not None:
        warnings += metrics.require_same_features(coded, theirs)
        result["floor"] = metrics.compare(coded, theirs, most_neighbours).values
        result["against_coded_references"] = metrics.compare(ours, coded, most_neighbours).values
    result["identical_images"] = metrics.identical_images(ours, theirs)
    if result["identical_images"]:
        warnings.append(
            f"{result['identical_images']} of the generated images are references, pixel for pixel"
        )
    return {
        **result,
        "warnings": warnings,
        "settings": {
            "features": {name: dict(side.about) for name, side in sides.items()},
            "most_neighbours": most_neighbours,
        },
        "rejected": _of_features(sides, lambda found: [list(pair) for pair in found.rejected]),
        "sizes": _of_features(sides, lambda found: dict(found.sizes)),
    }


def _of_features(sides: Mapping[str, Side], what: Callable[[FeatureSet], Any]) -> dict[str, Any]:
    return {name: what(side.features) for name, side in sides.items() if side.features is not None}


def _warnings(ours: Side, theirs: Side) -> list[str]:
    """What a reader of the numbers must know."""
    found = []
    settings = (ours.about or theirs.about).get("settings", {})
    if _is_fid(ours, theirs) and ours.statistics.mean.size != 2048:
        found.append(
            f"FID of {ours.statistics.mean.size} dimensions: published ones are of 2,048, and "
            "cannot be compared with it"
        )
    if "weights_known_as" in settings and settings["weights_known_as"] is None:
        found.append(
            f"the weights (SHA-256 {settings['weights_sha256']}) are not on the list of known "
            "files; published numbers cannot be compared with these"
        )
    for side in (ours, theirs):
        if side.features is None:
            continue
        if len(side.features.sizes) > 1:
            found.append(f"{side.name} has images of {len(side.features.sizes)} sizes")
        if side.features.rejected:
            name, reason = side.features.rejected[0]
            found.append(
                f"{len(side.features.rejected)} files of {side.name} are no readable images and do "
                f"not count, the first is {name}: {reason}"
            )
    return found


def _is_fid(ours: Side, theirs: Side) -> bool:
    """Whether the distance is FID at all."""
    return metrics.names(ours.about or theirs.about)["frechet"] == "fid"
