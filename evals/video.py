"""Example: python -m evals.video --generated=clips --references=folder:VIDEOS --out=evaluation

Evaluates generated clips against real ones: a Fréchet distance of whole clips, one of single
frames, the codec floor of both, and counts of documents that decode. For continuations (a generate
job with --prompts=VIDEOS) also PSNR and SSIM against the originals, frame by frame. Writes
video.json, and copies the first clips to OUT/videos.

Features of clips are those of I3D (--video_features=i3d --video_weights=FILE: the distance is FVD)
or of an extractor MODULE:FUNCTION; by default frame features pooled over time.
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
from data_pipelines.sources import open_source
from data_pipelines.utils import command
from data_pipelines.utils.cpus import num_cpus
from evals.distances import frechet, quality
from evals.distances.statistics import Statistics
from evals.evaluation import DEFAULTS
from evals.features import extractors, video_features
from evals.features.base import ClipExtractor, Extractor, FeatureError
from evals.inputs.clips import Clip, Clips, GeneratedClips, RealClips
from evals.reporting import settings
from evals.reporting.numbers import with_error
from evals.reporting.results import command_line, make_result, write_json
from jpeglm_jax.generation.pictures import SIDE_BY_SIDE
from jpeglm_jax.parallel import sharding
from jpeglm_jax.training import checkpoint

_BATCH = 32  # frames per call of the extractor
_VIDEOS = "videos"
_MAX_COPIED = 8  # clips copied for the report


@dataclasses.dataclass(frozen=True)
class ClipFeatures:
    """The features of a set of clips.

    Attributes:
      clips: of whole clips, float32 [N, d].
      frames: of all frames of all clips, float32 [M, e].
    """

    clips: np.ndarray
    frames: np.ndarray


def extract(
    clips: Clips, frame_extractor: Extractor, clip_extractor: ClipExtractor | None = None
) -> tuple[ClipFeatures, list[Clip]]:
    """Extracts features of all clips; returns them with the clips.

    Without an extractor of whole clips, the features of a clip are the mean and the standard
    deviation over time of its frame features.

    Raises FeatureError if there is no clip, or a feature is not finite.
    """
    read = list(tqdm.tqdm(clips, unit="clip", desc=clips.name))
    if not read:
        reason = f"; the first, {clips.rejected[0]}" if clips.rejected else ""
        raise FeatureError(f"{clips.name} holds no readable clip{reason}")
    prepared = (frame_extractor.prepare(frame) for clip in read for frame in clip.frames)
    parts = []
    while batch := list(itertools.islice(prepared, _BATCH)):
        padded = np.stack([*batch, *[batch[-1]] * (_BATCH - len(batch))])
        parts.append(np.asarray(frame_extractor.apply(padded)[frame_extractor.main])[: len(batch)])
    frames = np.concatenate(parts)
    if clip_extractor is not None:
        features = np.concatenate([clip_extractor.apply(clip.frames[None]) for clip in read])
    else:
        ends = np.cumsum([len(clip.frames) for clip in read])[:-1]
        features = np.stack(
            [np.concatenate([own.mean(0), own.std(0)]) for own in np.split(frames, ends)]
        )
    if not (np.isfinite(features).all() and np.isfinite(frames).all()):
        raise FeatureError(f"features of {clips.name} are NaN or infinite; check the weights")
    return ClipFeatures(features, frames), read


def evaluate(
    generated: GeneratedClips,
    references: RealClips,
    coded: RealClips,
    out: epath.PathLike,
    frame_extractor: Extractor,
    clip_extractor: ClipExtractor | None = None,
) -> dict[str, Any]:
    """Evaluates generated clips, and writes video.json.

    Args:
      generated: the output of a generate job.
      references: real clips, among them the originals of continuations.
      coded: the same clips after the codec.
      out: folder to write.
      frame_extractor: of frame features.
      clip_extractor: of clip features; None: frame features pooled over time.

    Returns:
      The contents of video.json.

    Raises:
      FeatureError: no clip, too few for a distance, or unusable features.
    """
    out = epath.Path(out)
    ours, generated_clips = extract(generated, frame_extractor, clip_extractor)
    theirs, real_clips = extract(references, frame_extractor, clip_extractor)
    floor, coded_clips = extract(coded, frame_extractor, clip_extractor)
    names = _names(frame_extractor, clip_extractor)
    figures: dict[str, Any] = {
        **_distances(ours, theirs, names),
        "floor": _distances(floor, theirs, names),
        "against_coded_references": _distances(ours, floor, names),
        "n_generated": len(generated_clips),
        "n_references": len(real_clips),
        "codec": generated.outcome.to_json()
        | {
            "frames_missing": generated.frames_missing,
            "frames_damaged": generated.frames_damaged,
        },
    }
    continued = continuations(generated_clips, real_clips, coded_clips)
    missing = {}
    if continued:
        figures["continuations"] = continued
    else:
        missing["continuations"] = "no document continues a reference"
    figures["rejected"] = [list(pair) for pair in references.rejected]
    figures["videos"] = _copy_videos(epath.Path(generated.name), out)
    clip_features = clip_extractor.name if clip_extractor else "frame features pooled over time"
    clip_settings = clip_extractor.settings if clip_extractor else {}
    metadata = {"extractor": frame_extractor.name, "settings": frame_extractor.settings}
    found = make_result(
        "video",
        _command(generated, references, out, frame_extractor, clip_extractor),
        {
            "generated": generated.name,
            "n_generated": len(generated_clips),
            "references": references.name,
            "n_references": len(real_clips),
            **settings.of_features(metadata, ours.frames.shape[1]),
            "clip_features": clip_features,
            "clip_dimensions": ours.clips.shape[1],
            **{f"clip_{name}": settings.flat(value) for name, value in clip_settings.items()},
            **settings.of_generation(generated.name),
            "validity": "tokens, now",
        },
        figures,
        versions=checkpoint.versions(),
        warnings=[
            *_warnings(references, clip_extractor, len(generated_clips), ours),
            *_changed(generated),
        ],
        not_computed=missing,
    )
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "video.json", found)
    return found


def _command(
    generated: GeneratedClips,
    references: RealClips,
    out: epath.Path,
    frame_extractor: Extractor,
    clip_extractor: ClipExtractor | None,
) -> str:
    """The command line of this module that gives a result again."""
    flags: dict[str, Any] = {"generated": generated.name, "references": references.name}
    flags |= {"num_references": references.max_clips, **frame_extractor.flags}
    flags |= dict(clip_extractor.flags) if clip_extractor else {}
    return command_line("evals.video", {**flags, "out": out}, {**DEFAULTS, "num_references": 0})


def _names(frame_extractor: Extractor, clip_extractor: ClipExtractor | None) -> tuple[str, str]:
    """Names of the distances of (clips, frames)."""
    of_frames = "frame_fid" if frame_extractor.name == "inception" else "frame_frechet_distance"
    if clip_extractor is None:
        return "pooled_frechet_distance", of_frames
    name = clip_extractor.name
    return ("fvd" if name == "i3d" else f"{name}_frechet_distance"), of_frames


def _distances(a: ClipFeatures, b: ClipFeatures, names: tuple[str, str]) -> dict[str, float | None]:
    """Distances of clips and of frames; only clips are independent and give a standard error."""
    clips, frames = names
    found = frechet.frechet_of_features(a.clips, Statistics.of(b.clips))
    error = found.standard_error
    return {
        clips: found.value,
        f"{clips}_standard_error": error if np.isfinite(error) else None,
        frames: frechet.frechet(Statistics.of(a.frames), Statistics.of(b.frames)),
    }


def continuations(
    generated: Sequence[Clip], real: Sequence[Clip], coded: Sequence[Clip]
) -> dict[str, Any] | None:
    """PSNR and SSIM of continuations and of the codec against the originals, by frame.

    Frames of the prompt are included: they show where the continuation begins.

    Returns:
      Means over the clips, one value per frame: `psnr_db`, `ssim`, `floor_psnr_db`, `floor_ssim`;
      and `n`, the number of clips. None if there are no continuations.
    """
    originals = {clip.key: clip.frames for clip in real}
    through = {clip.key: clip.frames for clip in coded}
    rows: dict[str, list[list[float]]] = {}
    for clip in generated:
        source = clip.record["source"]
        if not clip.record["prompt_tokens"] or source not in originals:
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
    references: RealClips,
    clip_extractor: ClipExtractor | None,
    n: int,
    ours: ClipFeatures,
) -> list[str]:
    found = []
    if clip_extractor is None:
        found.append(
            "clip features are frame features pooled over time; the distance is no FVD and not "
            "comparable with one"
        )
    if n < ours.clips.shape[1]:
        found.append(
            f"{n} clips are fewer than the {ours.clips.shape[1]} features: the distance has a "
            "large bias and is comparable only at the same number of clips"
        )
    if references.rejected:
        key, reason = references.rejected[0]
        found.append(
            f"{len(references.rejected)} files of {references.name} were rejected as unreadable; "
            f"the first is {key}: {reason}"
        )
    return found


def _changed(generated: GeneratedClips) -> list[str]:
    count = generated.outcome.other_than_manifest
    if not count:
        return []
    return [
        f"the validity of {count} documents is not what the manifest of {generated.name} states: "
        "they were changed since, or another version validated them"
    ]


def _copy_videos(generated: epath.Path, out: epath.Path) -> list[str]:
    """Copies the first .mp4 clips, for continuations those next to their originals."""
    folder = generated / SIDE_BY_SIDE
    paths = sorted((folder if folder.is_dir() else generated).glob("*.mp4"))[:_MAX_COPIED]
    if paths:
        (out / _VIDEOS).mkdir(parents=True, exist_ok=True)
    for path in paths:
        (out / _VIDEOS / path.name).write_bytes(path.read_bytes())
    return [f"{_VIDEOS}/{path.name}" for path in paths]


def table(result: Mapping[str, Any]) -> str:
    """Formats video.json for a terminal."""
    columns = {
        "generated": result,
        "generated, coded references": result["against_coded_references"],
        "floor: references through the codec": result["floor"],
    }
    names = [name for name in result["floor"] if not name.endswith("_standard_error")]
    lines = [f"{'':28}" + "".join(f"  {name:>35}" for name in columns)]
    for name in names:
        cells = [
            with_error(values[name], values.get(f"{name}_standard_error"))
            for values in columns.values()
        ]
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
    if representation.frames == 1:
        raise ValueError(
            f"{values.generated} holds {representation.medium}s, expected clips; use evals.fid"
        )
    extractor = extractors.from_flags(values, "digits" if "digits" in values.references else None)
    if extractor is None:
        raise ValueError("no extractor of frames: give --weights=FILE, or --features")
    source = open_source(values.references, representation.kind)
    max_clips = values.num_references
    result = evaluate(
        GeneratedClips(values.generated, representation),
        RealClips(source, representation, coded=False, max_clips=max_clips),
        RealClips(source, representation, coded=True, max_clips=max_clips),
        values.out,
        extractor,
        video_features.make(values.video_features, values.video_weights),
    )
    print(table(result))


if __name__ == "__main__":
    flags.DEFINE_string("generated", None, "Folder of a generate job.", required=True)
    flags.DEFINE_string("references", None, "Real videos, folder:PATH and so on.", required=True)
    flags.DEFINE_integer("num_references", 0, "Max reference clips; 0: all.", lower_bound=0)
    flags.DEFINE_string("out", None, "Folder to write.", required=True)
    flags.DEFINE_string("video_features", None, "i3d, or MODULE:FUNCTION for a ClipExtractor.")
    flags.DEFINE_string("video_weights", None, "File or URL of I3D's weights.")
    extractors.define_flags()
    command.run(main)
