"""Example: python -m evals.video --generated=clips --references=folder:VIDEOS --out=evaluation

How far generated clips are from real ones: a Fréchet distance of whole clips, one of single frames,
the codec's own floor beside both, and how many documents decode. Of continuations (a generate job
with --prompts=VIDEOS) also PSNR and SSIM against the originals, frame by frame. Writes video.json
and the first clips to OUT/videos.

Clips are seen by I3D (--video_features=i3d --video_weights=FILE: the distance is FVD), by what
MODULE:FUNCTION gives, or without either by the features of their frames, pooled over time, and the
distance is named for that.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tqdm
from absl import flags
from etils import epath

from data_pipelines import representations
from data_pipelines.representations.avc.representation import AvcRepresentation
from data_pipelines.sources import open_source
from data_pipelines.utils import command
from data_pipelines.utils.cpus import num_cpus
from evals.distances import frechet, quality
from evals.distances.statistics import FeatureError, Statistics
from evals.features import extractors, video_features
from evals.features.features import Extractor
from evals.features.video_features import ClipExtractor
from evals.inputs.clips import Clip, Clips, GeneratedClips, RealClips
from evals.likelihood import write_json
from jpeglm_jax.generation.pictures import SIDE_BY_SIDE
from jpeglm_jax.parallel import sharding
from jpeglm_jax.training import checkpoint

_BATCH = 32  # frames looked at together
_VIDEOS = "videos"
_SHOWN = 8  # clips that are copied beside the result


@dataclasses.dataclass(frozen=True)
class ClipFeatures:
    """What was seen of a set of clips.

    Attributes:
      clips: float32 [N, d].
      frames: float32 [all frames, e].
    """

    clips: np.ndarray
    frames: np.ndarray


def look(
    clips: Clips, per_frame: Extractor, whole: ClipExtractor | None = None
) -> tuple[ClipFeatures, list[Clip]]:
    """Features of all clips, and the clips themselves.

    Without an extractor of whole clips, a clip is the mean and the standard deviation over time of
    what is seen of its frames.

    Raises FeatureError if there is no clip, or a feature is not finite.
    """
    kept = list(tqdm.tqdm(clips, unit="clip", desc=clips.name))
    if not kept:
        reason = f"; the first, {clips.rejected[0]}" if clips.rejected else ""
        raise FeatureError(f"{clips.name} holds no clip that can be read{reason}")
    prepared = (per_frame.prepare(frame) for clip in kept for frame in clip.frames)
    parts = []
    while batch := list(itertools.islice(prepared, _BATCH)):
        filled = np.stack([*batch, *[batch[-1]] * (_BATCH - len(batch))])
        parts.append(np.asarray(per_frame.apply(filled)[per_frame.main])[: len(batch)])
    frames = np.concatenate(parts)
    if whole is not None:
        seen = [whole.apply(clip.frames[None]) for clip in kept]
        features = np.concatenate(seen)
    else:
        ends = np.cumsum([len(clip.frames) for clip in kept])[:-1]
        features = np.stack(
            [np.concatenate([own.mean(0), own.std(0)]) for own in np.split(frames, ends)]
        )
    if not (np.isfinite(features).all() and np.isfinite(frames).all()):
        raise FeatureError(f"features of {clips.name} are NaN or infinite; are the weights whole?")
    return ClipFeatures(features, frames), kept


def evaluate(
    generated: GeneratedClips,
    references: RealClips,
    coded: RealClips,
    out: epath.PathLike,
    per_frame: Extractor,
    whole: ClipExtractor | None = None,
) -> dict[str, Any]:
    """Evaluates generated clips, and writes video.json.

    Args:
      generated: a model's output.
      references: real clips; of continuations they hold the originals.
      coded: the same after the codec.
      out: folder to write.
      per_frame: what frames are looked at with.
      whole: what clips are looked at with.

    Returns:
      What is in video.json.

    Raises:
      FeatureError: no clip, too few for a distance, or unusable features.
    """
    out = epath.Path(out)
    ours, drawn = look(generated, per_frame, whole)
    theirs, real = look(references, per_frame, whole)
    floor, after = look(coded, per_frame, whole)
    names = _names(per_frame, whole)
    result: dict[str, Any] = {
        **_distances(ours, theirs, names),
        "floor": _distances(floor, theirs, names),
        "against_coded_references": _distances(ours, floor, names),
        "n_generated": len(drawn),
        "n_references": len(real),
        "codec": generated.outcome.to_json()
        | {
            "frames_missing": generated.frames_missing,
            "frames_damaged": generated.frames_damaged,
        },
    }
    continued = continuations(drawn, real, after)
    missing = {}
    if continued:
        result["continuations"] = continued
    else:
        missing["continuations"] = "no document continues one of the references"
    result["not_computed"] = missing
    result["warnings"] = _warnings(generated, references, whole, len(drawn), ours)
    result["rejected"] = [list(pair) for pair in references.rejected]
    result["videos"] = _copy_videos(epath.Path(generated.name), out)
    result["settings"] = {
        "frame_features": per_frame.name,
        "frame_features_about": dict(per_frame.about),
        "clip_features": whole.name if whole else "frame features pooled over time",
        "clip_features_about": dict(whole.about) if whole else {},
    }
    result["versions"] = checkpoint.versions()
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "video.json", result)
    return result


def _names(per_frame: Extractor, whole: ClipExtractor | None) -> tuple[str, str]:
    """What the distances of (clips, frames) are called."""
    of_frames = "frame_fid" if per_frame.name == "inception" else "frame_frechet_distance"
    if whole is None:
        return "pooled_frechet_distance", of_frames
    return ("fvd" if whole.name == "i3d" else f"{whole.name}_frechet_distance"), of_frames


def _distances(a: ClipFeatures, b: ClipFeatures, names: tuple[str, str]) -> dict[str, float | None]:
    """Of clips with a standard error over the clips; frames of a clip are not independent."""
    clips, frames = names
    found = frechet.frechet_of_features(a.clips, Statistics.of(b.clips))
    error = found.standard_error
    return {
        clips: found.value,
        f"{clips}_standard_error": error if np.isfinite(error) else None,
        frames: frechet.frechet(Statistics.of(a.frames), Statistics.of(b.frames)),
    }


def continuations(
    drawn: Sequence[Clip], real: Sequence[Clip], coded: Sequence[Clip]
) -> dict[str, Any] | None:
    """PSNR and SSIM of continuations against their originals, by frame; the codec's beside them.

    Frames that were given count too: they show where the continuation begins.

    Returns:
      Means over the clips, a value a frame: `psnr_db`, `ssim`, `floor_psnr_db`, `floor_ssim`; and
      `n`. None if nothing was continued.
    """
    originals = {clip.key: clip.frames for clip in real}
    through = {clip.key: clip.frames for clip in coded}
    rows: dict[str, list[list[float]]] = {}
    for clip in drawn:
        source = clip.about["source"]
        if not clip.about["prompt_tokens"] or source not in originals:
            continue
        for prefix, frames in (("", clip.frames), ("floor_", through[source])):
            pairs = list(zip(frames, originals[source], strict=False))
            found = {
                "psnr_db": [min(quality.psnr(a, b), 100.0) for a, b in pairs],
                "ssim": [quality.ssim(a, b) for a, b in pairs],
            }
            for name, values in found.items():
                rows.setdefault(prefix + name, []).append(values)
    if not rows:
        return None
    length = min(len(values) for clips in rows.values() for values in clips)
    means = {
        name: np.mean([values[:length] for values in clips], 0).tolist()
        for name, clips in rows.items()
    }
    return {"n": len(rows["ssim"]), **means}


def _warnings(
    generated: GeneratedClips,
    references: RealClips,
    whole: ClipExtractor | None,
    n: int,
    ours: ClipFeatures,
) -> list[str]:
    found = []
    if whole is None:
        found.append(
            "clips were seen by what is seen of their frames, pooled over time; this is no FVD and "
            "cannot be compared with one"
        )
    if n < ours.clips.shape[1]:
        found.append(
            f"{n} clips are fewer than the {ours.clips.shape[1]} features: the distance is much "
            "too large, and compares only at one number of clips"
        )
    if references.rejected:
        key, reason = references.rejected[0]
        found.append(
            f"{len(references.rejected)} files of {references.name} cannot be read to their end, "
            f"the first is {key}: {reason}"
        )
    return found


def _copy_videos(generated: epath.Path, out: epath.Path) -> list[str]:
    """The first clips that play, side by side with their originals if they continue them."""
    folder = generated / SIDE_BY_SIDE
    paths = sorted((folder if folder.is_dir() else generated).glob("*.mp4"))[:_SHOWN]
    if paths:
        (out / _VIDEOS).mkdir(parents=True, exist_ok=True)
    for path in paths:
        (out / _VIDEOS / path.name).write_bytes(path.read_bytes())
    return [f"{_VIDEOS}/{path.name}" for path in paths]


def table(result: Mapping[str, Any]) -> str:
    """video.json for a terminal."""
    columns = {
        "generated": result,
        "generated, coded references": result["against_coded_references"],
        "floor: references through the codec": result["floor"],
    }
    names = [name for name in result["floor"] if not name.endswith("_standard_error")]
    lines = [f"{'':28}" + "".join(f"  {name:>35}" for name in columns)]
    for name in names:
        cells = [f"{values[name]:.4f}" for values in columns.values()]
        lines.append(f"{name:28}" + "".join(f"  {cell:>35}" for cell in cells))
    lines.append(f"{result['n_generated']} generated, {result['n_references']} references")
    counts = {name: n for name, n in result["codec"].items() if n is not None}
    lines.append(", ".join(f"{n} {name.replace('_', ' ')}" for name, n in counts.items()))
    if "continuations" in result:
        psnr = result["continuations"]["psnr_db"]
        lines.append("PSNR by frame, dB: " + " ".join(f"{value:.1f}" for value in psnr))
    return "\n".join(lines + [f"note: {warning}" for warning in result["warnings"]])


def main(arguments: Sequence[str]) -> None:
    command.no_arguments(arguments)
    checkpoint.quiet_libraries()
    sharding.split_cpu(num_cpus())
    values = flags.FLAGS
    representation = representations.load(values.generated)
    if not isinstance(representation, AvcRepresentation):
        raise ValueError(f"{values.generated} holds {representation.medium}s; see evals.fid")
    extractor = extractors.from_flags(values, "digits" if "digits" in values.references else None)
    if extractor is None:
        raise ValueError("there is nothing to look at frames with; give --weights or --features")
    source, most = open_source(values.references, representation.kind), values.num_references
    result = evaluate(
        GeneratedClips(values.generated, representation),
        RealClips(source, representation, coded=False, most=most),
        RealClips(source, representation, coded=True, most=most),
        values.out,
        extractor,
        video_features.make(values.video_features, values.video_weights),
    )
    print(table(result))


if __name__ == "__main__":
    flags.DEFINE_string("generated", None, "Folder of a generate job.", required=True)
    flags.DEFINE_string("references", None, "Real videos, folder:PATH and so on.", required=True)
    flags.DEFINE_integer("num_references", 0, "Clips of them to look at; 0: all.")
    flags.DEFINE_string("out", None, "Folder to write.", required=True)
    flags.DEFINE_string("video_features", None, "i3d, or MODULE:FUNCTION for a ClipExtractor.")
    flags.DEFINE_string("video_weights", None, "File or URL of I3D's weights.")
    extractors.define_flags()
    command.run(main)
