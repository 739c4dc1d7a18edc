"""Example: python -m evals.completion --workdir=runs/mine --images=folder:PHOTOS --num=1000 \\
    --ratios=0.25,0.5,0.75 --out=completion --weights=pt_inception-2015-12-05-6726825d.pth

The protocol of JPEG-LM (Han et al., arXiv 2408.08459, section 5): the model completes real images
from their first rows, with several seeds; the completed images are compared with the real ones.
--unconditional also generates as many images without a prompt. completion.json has the paper's
table, with the codec floor as a row; grid.png shows originals, prompts and completions.

Prompts are cut after whole rows of MCUs. Columns are named by the share of the images that the
prompts hold, which may be less than the ratio; ratios with the same prompts share a column.

--half_size is the paper's test of small elements: images at half size on black, compared in that
region only.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from etils import epath

from data_pipelines.shards.storage import ShardError
from data_pipelines.utils import command
from data_pipelines.utils.cpus import num_cpus
from data_pipelines.utils.seeds import check_seed
from evals import prompting
from evals.codelength.conditioning import resolve_conditioning
from evals.evaluation import DEFAULTS, evaluate
from evals.features import extractors, half_size
from evals.features.base import Extractor
from evals.inputs.documents import Documents
from evals.inputs.images import open_images, require_images
from evals.likelihood import define_flags, eval_split
from evals.prompting import UNCONDITIONAL, Column
from evals.reporting import settings
from evals.reporting.numbers import counted, with_error
from evals.reporting.results import claim_folder, command_line, make_result, write_json
from jpeglm_jax.generation.job import generate
from jpeglm_jax.generation.options import resolve_sampling_params
from jpeglm_jax.generation.sampling import SamplingParams
from jpeglm_jax.model.trained import TrainedModel
from jpeglm_jax.parallel import sharding
from jpeglm_jax.training import checkpoint

HALF_SIZE = "half_size"  # subfolder of the images at half size
_FEATURES = ("dimensions", "resize")  # settings of features besides network*
_SAMPLING = [field.name for field in dataclasses.fields(SamplingParams)]

# Rows of the table, and where their metrics are in metrics.json.
_FLOOR = "floor: references through the codec"
_ROWS = {
    "model": lambda result: result,
    "model, coded references": lambda result: result.get("against_coded_references"),
    _FLOOR: lambda result: result.get("floor"),
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
    conditioning: str = "auto",
    batch_size: int = 64,
    rejected: Sequence[tuple[str, str]] = (),
    references_coded: str | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """Completes images, evaluates them, and writes completion.json and grid.png to a folder.

    Finished generations and features are kept if the settings are the same.

    Args:
      model: a trained model.
      documents: the originals, of the model's representation.
      references: the reference set, see `evaluation.evaluate`.
      out: folder to write.
      extractor: of the features.
      ratios: shares of the image in the prompt, each more than 0 and less than 1.
      unconditional: also generate as many images without a prompt.
      seeds: number of completions of each prompt.
      seed: the first seed.
      sampling_params: temperature and the like.
      conditioning: "auto", "label" or "none", see `resolve_conditioning`.
      batch_size: documents generated together.
      rejected: (name, reason) of originals rejected before `documents`, for the report.
      references_coded: see `evaluation.evaluate`.
      command: that gives the result again; default that of this module with these arguments.

    Returns:
      The contents of completion.json.

    Raises:
      SettingsError: the folder holds completions of other weights or settings, or other files.
      ValueError: nothing to complete, or invalid settings.
    """
    require_images(model.representation)
    wanted = _ratios(ratios, unconditional, seeds)
    check_seed(seed + seeds - 1, "the last seed")
    conditioning = resolve_conditioning(conditioning, model.representation, documents)
    if conditioning == "marginal":
        raise ValueError(
            "conditioning is 'marginal', but a completion needs one start token; use label or none"
        )
    out = epath.Path(out)
    originals, columns, excluded, empty = prompting.make_prompts(
        model, documents, wanted, conditioning
    )
    claim = {
        "step": model.step,
        "weights": model.weights_digest,
        "fingerprint": model.representation.fingerprint,
        "originals": prompting.digest(originals),
        "conditioning": conditioning,
        "seed": seed,
        "sampling": dataclasses.asdict(sampling_params),
    }
    claim_folder(out, claim, own=[HALF_SIZE])
    if command is None:
        given = {"ratios": list(ratios), "unconditional": unconditional, "seeds": seeds}
        given |= {"seed": seed, "conditioning": conditioning, "batch_size": batch_size}
        given |= {"references": references if references != documents.name else None}
        command = _command(
            model, documents.name, documents.num, sampling_params, extractor, out, given
        )
    found: list[dict[str, Any]] = []
    first: epath.Path | None = None
    for column in columns:
        folders = [out / column.folder / f"seed-{number}" for number in range(seeds)]
        requests = prompting.requests(model.representation, originals, column)
        for number, folder in enumerate(folders):
            generate(
                model, folder, requests, sampling_params, seed=seed + number, batch_size=batch_size
            )
            evaluation = out / "evaluations" / column.folder / folder.name
            result = evaluate(
                str(folder),
                _extracted(first, "references") or references,
                evaluation,
                extractor=extractor,
                representation=model.representation,
                references_coded=_extracted(first, "references_coded") or references_coded,
                command=command,
            )
            first = first or evaluation
            found.append(
                {
                    "column": column.name,
                    "seed": seed + number,
                    "metrics": result,
                    "folder": str(folder.relative_to(out)),
                }
            )
        prompting.grid(model, originals, column, folders, out / column.folder / "grid.png")
    figures, warnings, missing = _figures(found, columns, [*rejected, *excluded], documents)
    first_settings = found[0]["metrics"]["settings"]
    of_features = {
        name: value
        for name, value in first_settings.items()
        if name.startswith("network") or name in _FEATURES
    }
    report = make_result(
        "completion",
        command,
        {
            **settings.of_model(model),
            **settings.of_sampling(sampling_params, seed),
            "constrained": False,
            "label": "given" if conditioning == "label" else "none",
            "seeds": seeds,
            "images": documents.name,
            "images_are": settings.images_are(model, documents.name),
            "references": references,
            "ratios": list(ratios),
            "prompt_shares": [column.share for column in columns],
            "documents": "continuations",
            **of_features,
        },
        figures,
        versions=checkpoint.versions(),
        warnings=warnings,
        not_computed={f"prompt {ratio:g}": why for ratio, why in empty.items()} | missing,
    )
    write_json(out / "completion.json", report)
    return report


def _command(
    model: TrainedModel,
    images: str,
    num: int,
    sampling_params: SamplingParams,
    extractor: Extractor,
    out: epath.PathLike,
    given: Mapping[str, Any],
) -> str:
    """The command line of this module that gives a result again."""
    defaults = dataclasses.asdict(SamplingParams.from_config(model.config.sample))
    defaults |= {"num": 0, "seed": 0, "seeds": 3, "batch_size": 16, "unconditional": False}
    defaults |= {
        "half_size": False,
        "conditioning": "auto",
        **DEFAULTS,
        "num": 0,
        "ratios": [0.25, 0.5, 0.75],
    }
    flags = {"workdir": model.workdir, "step": model.step, "images": images, "num": num}
    flags |= {**given, **dataclasses.asdict(sampling_params), **extractor.flags, "out": out}
    return command_line("evals.completion", flags, defaults)


def _ratios(ratios: Sequence[float], unconditional: bool, seeds: int) -> list[float]:
    """The different ratios, 0 for images without a prompt. Raises ValueError."""
    if seeds < 1:
        raise ValueError(f"seeds is {seeds}; expected 1 or more")
    for ratio in ratios:
        if not 0 < ratio < 1:
            raise ValueError(
                f"a ratio is {ratio}; expected more than 0 and less than 1 (for no prompt: "
                "--unconditional)"
            )
    found = list(dict.fromkeys([*map(float, ratios), *([0.0] if unconditional else [])]))
    if not found:
        raise ValueError("nothing to generate; give --ratios or --unconditional")
    return found


def _extracted(evaluation: epath.Path | None, name: str) -> str | None:
    """The features of a reference set that an earlier evaluation extracted, if it did."""
    if evaluation is None or not (evaluation / name).is_dir():
        return None
    return str(evaluation / name)


def _figures(
    found: Sequence[Mapping[str, Any]],
    columns: Sequence[Column],
    rejected: Sequence[tuple[str, str]],
    documents: Documents,
) -> tuple[dict[str, Any], list[str], dict[str, str]]:
    """(figures, warnings, figures that are missing) of all completions."""
    first = found[0]["metrics"]
    main = next(name for name in ("fid", "frechet_distance") if name in first)
    table: dict[str, dict[str, Any]] = {}
    for row, get in _ROWS.items():
        cells = {}
        for column in columns:
            values = [get(each["metrics"]) for each in found if each["column"] == column.name]
            if all(values):
                cells[column.name] = _cell(values, main, seeds=row != _FLOOR)
        if cells:
            table[row] = cells
    of = first["settings"]["references"]
    warnings = list(
        dict.fromkeys(text for each in found for text in _warnings(each["metrics"], of))
    )
    if _FLOOR not in table:
        warnings.append(
            "there is no codec floor, because the references were decoded from shards; give images "
            "as --images or --references"
        )
    if rejected:
        name, reason = rejected[0]
        warnings.append(
            f"{len(rejected)} originals of {documents.name} are not completed; the first is "
            f"{name}: {reason}"
        )
    warnings += [
        f"ratios {' and '.join(f'{ratio:g}' for ratio in column.ratios)} give the same prompts, "
        f"{column.share:.3g} of the images on average, and are one column"
        for column in columns
        if len(column.ratios) > 1
    ]
    figures = {
        "metric": main,
        "table": table,
        "n_generated": first["n_generated"],
        "n_references": first["n_references"],
        "completions": list(found),
        "columns": {column.name: column.to_json() for column in columns},
        "grids": {column.name: f"{column.folder}/grid.png" for column in columns},
        "rejected": [list(pair) for pair in rejected],
    }
    return figures, warnings, first["not_computed"]


def _warnings(result: Mapping[str, Any], references: str) -> list[str]:
    """Warnings of one evaluation, in words that are the same for all columns and seeds."""
    of = result["settings"]
    names = {of["generated"]: "the completed images", of["references"]: references}
    found = []
    for text in result["warnings"]:
        for name, own in names.items():
            text = text.replace(name, own)
        found.append(text)
    return found


def _cell(results: Sequence[Mapping[str, Any]], name: str, *, seeds: bool) -> dict[str, Any]:
    """Mean over the seeds, its standard error, and the value of each seed.

    Values that are independent of the seeds, those of the floor, have the error of the metric.
    """
    values = [result[name] for result in results]
    error = results[0].get(f"{name}_standard_error")
    if seeds:
        error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return {"value": statistics.fmean(values), "standard_error": error, "seeds": values}


def table(result: Mapping[str, Any]) -> str:
    """Formats completion.json for a terminal, as the paper's table."""
    columns = list(result["columns"])
    title = result["metric"].replace("_", " ")
    heads = [f"prompt {name}" if name != UNCONDITIONAL else name for name in columns]
    lines = [f"{title:38}" + "".join(f"{head:>20}" for head in heads)]
    for row, cells in result["table"].items():
        text = [_text(cells[name]) if name in cells else "-" for name in columns]
        lines.append(f"{row:38}" + "".join(f"{cell:>20}" for cell in text))
    for column in columns:
        codecs = [
            each["metrics"]["codec"] for each in result["completions"] if each["column"] == column
        ]
        requested = sum(codec["requested"] for codec in codecs)
        valid = sum(codec["strictly_valid"] for codec in codecs)
        what = "samples" if column == UNCONDITIONAL else f"continuations of {column}"
        lines.append(f"{valid} of {requested} {what} strictly valid")
    references = counted(result["n_references"], "references")
    lines.append(f"{result['n_generated']} completed per seed, {references}")
    lines += [f"not computed: {name}: {reason}" for name, reason in result["not_computed"].items()]
    return "\n".join(lines + [f"note: {warning}" for warning in result["warnings"]])


def _text(cell: Mapping[str, Any]) -> str:
    return with_error(cell["value"], cell["standard_error"])


def main(arguments: Sequence[str]) -> None:
    command.no_arguments(arguments)
    checkpoint.quiet_libraries()
    sharding.split_cpu(num_cpus())
    values = flags.FLAGS
    ratios = [_number(text) for text in values.ratios]
    _ratios(ratios, values.unconditional, values.seeds)
    sampling = {name: values[name].value for name in _SAMPLING}
    SamplingParams(**{name: value for name, value in sampling.items() if value is not None})
    model = checkpoint.load(values.workdir, values.step)
    images = values.images or eval_split(model, values.workdir)
    extractor = extractors.from_flags(values, values.images or model.config.data.source)
    if extractor is None:
        raise ValueError("no extractor: give --weights=FILE, or --features")
    rejected: list[tuple[str, str]] = []
    sampling_params = resolve_sampling_params(model, sampling)
    command_text = None
    if values.half_size:
        names = ("references", "unconditional", "seeds", "seed", "conditioning", "batch_size")
        given = {
            "ratios": ratios,
            "half_size": True,
            **{name: values[name].value for name in names},
        }
        command_text = _command(
            model, images, values.num, sampling_params, extractor, values.out, given
        )
        folder = epath.Path(values.out) / HALF_SIZE
        real = open_images(images)
        rejected = half_size.write(real, model.representation, folder, values.num, values.seed)
        images = f"folder:{folder}"
        extractor = half_size.on_active_region(extractor)
    result = completion(
        model,
        Documents(images, model.representation, values.num, values.seed),
        values.references or images,
        values.out,
        extractor=extractor,
        ratios=ratios,
        unconditional=values.unconditional,
        seeds=values.seeds,
        seed=values.seed,
        sampling_params=sampling_params,
        conditioning=values.conditioning,
        batch_size=values.batch_size,
        rejected=rejected,
        command=command_text,
    )
    print(table(result))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"found {text!r} in --ratios, expected numbers") from None


def _define_flags() -> None:
    define_flags()
    flags.DEFINE_string("references", None, "Reference set; default the images themselves.")
    flags.DEFINE_list("ratios", ["0.25", "0.5", "0.75"], "Shares of the image in the prompt.")
    flags.DEFINE_boolean("unconditional", False, "Also generate images without a prompt.")
    flags.DEFINE_integer("seeds", 3, "Number of completions of each prompt.", lower_bound=1)
    for name in _SAMPLING:
        define = flags.DEFINE_integer if name == "top_k" else flags.DEFINE_float
        define(name, None, "See jpeglm_jax.generate; default the run's own.")
    flags.DEFINE_boolean("half_size", False, "Complete images at half size on black.")
    extractors.define_flags()


if __name__ == "__main__":
    _define_flags()
    command.run(main, ShardError)
