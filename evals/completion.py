"""Example: python -m evals.completion --workdir=runs/mine --images=folder:PHOTOS --num=1000 \\
    --ratios=0.25,0.5,0.75 --out=completion --weights=pt_inception-2015-12-05-6726825d.pth

The protocol of JPEG-LM (Han et al., arXiv 2408.08459, section 5): the model is given the first rows
of real images and draws the rest, several times; the completed images are compared with the real
ones. --unconditional also draws as many images from nothing. A table has the paper's columns, with
the codec's own floor as a row; grid.png shows originals, prompts and completions.

--half_size is the paper's test of small elements: images are reduced to half their sides on black,
and only that region is compared.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from etils import epath

from data_pipelines.utils import command
from data_pipelines.utils.cpus import num_cpus
from evals import likelihood as bits
from evals import metrics, prompting
from evals.evaluation import evaluate
from evals.features import extractors, half_size
from evals.features.features import Extractor
from evals.inputs.documents import Documents
from evals.inputs.images import open_images
from jpeglm_jax.generation.job import generate
from jpeglm_jax.generation.options import resolve_sampling_params
from jpeglm_jax.generation.sampling import SamplingParams
from jpeglm_jax.model.trained import TrainedModel
from jpeglm_jax.parallel import sharding
from jpeglm_jax.training import checkpoint

UNCONDITIONAL = "unconditional"
_SAMPLING = [field.name for field in dataclasses.fields(SamplingParams)]

# Rows of the table: where each is in metrics.json.
_ROWS = {
    "model": lambda result: result,
    "model, coded references": lambda result: result.get("against_coded_references"),
    "floor: references through the codec": lambda result: result.get("floor"),
}


def completion(
    model: TrainedModel,
    documents: Documents,
    references: str,
    out: epath.PathLike,
    *,
    extractor: Extractor,
    ratios: Sequence[float] = (0.25, 0.5, 0.75),
    unconditional: bool = False,
    seeds: int = 3,
    seed: int = 0,
    sampling_params: SamplingParams = SamplingParams(),  # noqa: B008  a frozen value
    given: str = "auto",
    batch_size: int = 64,
    set_aside: Sequence[tuple[str, str]] = (),
) -> dict[str, Any]:
    """Completes, scores, and writes completion.json and grid.png to a folder.

    What has been drawn or looked at already is gone on with, as long as the settings are the same.

    Args:
      model: what completes.
      documents: the originals, of the model's representation.
      references: what completed images are compared with, see `evaluation.evaluate`.
      out: folder to write.
      extractor: what to look with.
      ratios: parts of the image that are given, each more than 0 and less than 1.
      unconditional: also draw as many images without a prompt.
      seeds: how often each is drawn.
      seed: decides what is drawn.
      sampling_params: how tokens are drawn.
      given: "auto", "label" or "none", see `likelihood.choose_given`.
      batch_size: documents drawn together.
      set_aside: (name, reason) of originals that were lost before `documents`.

    Returns:
      What is in completion.json.

    Raises:
      ValueError: nothing to complete, or settings that do not fit.
    """
    columns = _columns(ratios, unconditional, seeds)
    given = bits.choose_given(given, model.representation, documents)
    if given == "marginal":
        raise ValueError("a completion is drawn under one start token; give label or none")
    out = epath.Path(out)
    originals, left_out = prompting.prompted(model, documents, columns, given)
    settings = {
        "step": model.step,
        "fingerprint": model.representation.fingerprint,
        "originals": prompting.digest(originals),
        "given": given,
        "seed": seed,
        "sampling": dataclasses.asdict(sampling_params),
    }
    _claim(out, settings)
    found: list[dict[str, Any]] = []
    judged: epath.Path | None = None
    for column in columns:
        folders = [out / _folder(column) / f"seed-{draw}" for draw in range(seeds)]
        requests = prompting.requests(model.representation, originals, column)
        for draw, folder in enumerate(folders):
            generate(
                model, folder, requests, sampling_params, seed=seed + draw, batch_size=batch_size
            )
            place = out / "evaluations" / _folder(column) / folder.name
            result = evaluate(
                str(folder),
                str(judged / "references") if judged else references,
                place,
                extractor=extractor,
                representation=model.representation,
                references_coded=_coded(judged),
            )
            judged = judged or place
            found.append({"column": column, "seed": seed + draw, "metrics": result})
            found[-1]["folder"] = str(folder.relative_to(out))
        prompting.grid(model, originals, column, folders, out / _folder(column) / "grid.png")
    report = _report(found, columns, [*set_aside, *left_out], documents)
    report["settings"] = {
        **settings,
        "images": documents.about,
        "ratios": list(ratios),
        "seeds": seeds,
    }
    report["settings"]["features"] = found[0]["metrics"]["settings"]["features"]
    report["versions"] = checkpoint.versions()
    bits.write_json(out / "completion.json", report)
    return report


def _claim(out: epath.Path, settings: Mapping[str, Any]) -> None:
    """Raises CheckpointError if the folder holds completions of other settings."""
    path = out / "settings.json"
    if path.is_file():
        checkpoint.refuse_difference(settings, json.loads(path.read_text()), "job", str(out))
        return
    out.mkdir(parents=True, exist_ok=True)
    bits.write_json(path, settings)


def _columns(ratios: Sequence[float], unconditional: bool, seeds: int) -> dict[str, float]:
    """Name of each column -> part of the image that is given."""
    if seeds < 1:
        raise ValueError(f"seeds is {seeds}; expected 1 or more")
    for ratio in ratios:
        if not 0 < ratio < 1:
            raise ValueError(
                f"a ratio is {ratio}; expected more than 0 and less than 1 (nothing given: "
                "--unconditional)"
            )
    columns = {f"{ratio:g}": float(ratio) for ratio in ratios}
    if unconditional:
        columns[UNCONDITIONAL] = 0.0
    if not columns:
        raise ValueError("there is nothing to draw; give --ratios or --unconditional")
    return columns


def _folder(column: str) -> str:
    return column if column == UNCONDITIONAL else f"ratio-{column}"


def _coded(judged: epath.Path | None) -> str | None:
    """Features of the references after the codec, where the first evaluation left some."""
    if judged is None or not (judged / "references_coded").is_dir():
        return None
    return str(judged / "references_coded")


def _report(
    found: Sequence[Mapping[str, Any]],
    columns: Mapping[str, float],
    left_out: Sequence[tuple[str, str]],
    documents: Documents,
) -> dict[str, Any]:
    first = found[0]["metrics"]
    main = metrics.names(first["settings"]["features"]["generated"])["frechet"]
    table: dict[str, dict[str, Any]] = {}
    for row, take in _ROWS.items():
        cells = {}
        for column in columns:
            values = [take(each["metrics"]) for each in found if each["column"] == column]
            if all(values):
                cells[column] = _cell([value[main] for value in values])
        if cells:
            table[row] = cells
    warnings = list(dict.fromkeys(text for each in found for text in each["metrics"]["warnings"]))
    if "floor: references through the codec" not in table:
        warnings.append(
            "there is no floor: the references have been through the codec already; give images "
            "as --images or --references"
        )
    if left_out:
        name, reason = left_out[0]
        warnings.append(
            f"{len(left_out)} originals of {documents.name} are not completed, the first is "
            f"{name}: {reason}"
        )
    return {
        "metric": main,
        "table": table,
        "n_generated": first["n_generated"],
        "n_references": first["n_references"],
        "completions": list(found),
        "grids": {column: f"{_folder(column)}/grid.png" for column in columns},
        "not_computed": first["not_computed"],
        "warnings": warnings,
        "rejected": [list(pair) for pair in left_out],
    }


def _cell(values: Sequence[float]) -> dict[str, Any]:
    """Mean over the seeds, its standard error, and the values themselves."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return {"value": statistics.fmean(values), "standard_error": error, "seeds": list(values)}


def table(result: Mapping[str, Any]) -> str:
    """completion.json as the paper's table, for a terminal."""
    columns = list(result["grids"])
    title = result["metric"].replace("_", " ")
    lines = [f"{title:38}" + "".join(f"{name:>20}" for name in columns)]
    for row, cells in result["table"].items():
        text = [_text(cells[name]) if name in cells else "-" for name in columns]
        lines.append(f"{row:38}" + "".join(f"{cell:>20}" for cell in text))
    for column in columns:
        codecs = [
            each["metrics"]["codec"] for each in result["completions"] if each["column"] == column
        ]
        asked = sum(codec["requested"] for codec in codecs)
        valid = sum(codec["strictly_valid"] for codec in codecs)
        lines.append(f"{column}: {valid} of {asked} strictly valid")
    lines.append(f"{result['n_generated']} completed a seed, {result['n_references']} references")
    return "\n".join(lines + [f"note: {warning}" for warning in result["warnings"]])


def _text(cell: Mapping[str, Any]) -> str:
    error = cell["standard_error"]
    return f"{cell['value']:.3f}" + (f" +- {error:.3f}" if error is not None else "")


def main(arguments: Sequence[str]) -> None:
    command.no_arguments(arguments)
    checkpoint.quiet_libraries()
    sharding.split_cpu(num_cpus())
    values = flags.FLAGS
    model = checkpoint.load(values.workdir, values.step)
    images = values.images or bits.held_out(model, values.workdir)
    extractor = extractors.from_flags(values, values.images or model.config.data.source)
    if extractor is None:
        raise ValueError("there is nothing to look with: give --weights=FILE, or --features")
    set_aside: list[tuple[str, str]] = []
    if values.half_size:
        folder = epath.Path(values.out) / "half_size"
        real = open_images(images)
        set_aside = half_size.write(real, model.representation, folder, values.num, values.seed)
        images = f"folder:{folder}"
        extractor = half_size.on_active_region(extractor)
    result = completion(
        model,
        Documents(images, model.representation, values.num, values.seed),
        values.references or images,
        values.out,
        extractor=extractor,
        ratios=[_number(text) for text in values.ratios],
        unconditional=values.unconditional,
        seeds=values.seeds,
        seed=values.seed,
        sampling_params=resolve_sampling_params(
            model, {name: values[name].value for name in _SAMPLING}
        ),
        given=values.given,
        batch_size=values.batch_size,
        set_aside=set_aside,
    )
    print(table(result))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"found {text!r} among --ratios, expected numbers") from None


def _define_flags() -> None:
    bits.define_flags()
    flags.DEFINE_string("references", None, "What to compare with; default the images themselves.")
    flags.DEFINE_list("ratios", ["0.25", "0.5", "0.75"], "Parts of the image that are given.")
    flags.DEFINE_boolean("unconditional", False, "Also draw images from nothing.")
    flags.DEFINE_integer("seeds", 3, "How often each is drawn.")
    for name in _SAMPLING:
        define = flags.DEFINE_integer if name == "top_k" else flags.DEFINE_float
        define(name, None, "See jpeglm_jax.generate; default the run's own.")
    flags.DEFINE_boolean("half_size", False, "Images of half their size on black.")
    extractors.define_flags()


if __name__ == "__main__":
    _define_flags()
    command.run(main)
