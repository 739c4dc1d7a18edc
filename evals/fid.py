"""Example: python -m evals.fid --generated=samples --references=folder:PHOTOS --out=evaluation \\
    --weights=pt_inception-2015-12-05-6726825d.pth

Computes FID, KID, precision, recall and related metrics of a generated set against a reference
set, with standard errors; for a model of codec bytes also the floor of the codec. Three resumable
steps: features, statistics (stats.npz) and metrics (metrics.json). See docs/evaluation.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from etils import epath

from data_pipelines import representations
from data_pipelines.representations.base import CONFIG_FILE, Representation
from data_pipelines.shards.storage import ShardError
from data_pipelines.utils import command
from data_pipelines.utils.cpus import num_cpus
from data_pipelines.utils.seeds import MAX_SEED
from evals import metrics, per_class
from evals.evaluation import STEPS, evaluate, fid_command
from evals.features import extractors
from evals.features.base import Extractor
from evals.inputs.images import OPEN_AS, require_images
from evals.reporting.numbers import counted, with_error
from evals.reporting.results import read_result
from jpeglm_jax.generation import prompts
from jpeglm_jax.generation.job import generate
from jpeglm_jax.generation.options import BALANCED, resolve_labels
from jpeglm_jax.generation.sampling import SamplingParams
from jpeglm_jax.parallel import sharding
from jpeglm_jax.training import checkpoint


def sample(
    workdir: str,
    out: epath.PathLike,
    num: int,
    seed: int,
    step: int | None,
    labels: str | None = None,
) -> tuple[str, Representation]:
    """Generates images with a run's model, unless that is done: (their folder, representation).

    `labels` is that of `options.resolve_labels`.

    Raises JobError if the folder of the images holds those of other weights or other settings, and
    ValueError for a model of clips.
    """
    require_images(checkpoint.describe(workdir, step).representation)
    model = checkpoint.load(workdir, step)
    wanted = resolve_labels(model, num, labels=labels)
    num = len(wanted)
    folder = epath.Path(out) / f"samples-step{model.step}-seed{seed}-num{num}"
    sampling_params = SamplingParams.from_config(model.config.sample)
    requests = prompts.label_requests(model.representation, wanted)
    generate(model, folder, requests, sampling_params, seed=seed, batch_size=min(64, num))
    return str(folder), model.representation


def sampled_command(
    workdir: epath.PathLike,
    references: str | None,
    out: epath.PathLike,
    extractor: Extractor | None,
    *,
    num: int,
    seed: int,
    step: int | None,
    **flags: Any,
) -> str:
    """The command line that samples with a run's model and evaluates the images.

    It names the step of the checkpoint, also where that is the newest: a later one would give other
    figures.

    Args:
      workdir, references, out, num, seed, step: flags of this command.
      extractor: of the features.
      **flags: further flags.
    """
    step = checkpoint.describe(workdir, step).step
    given = {"workdir": workdir, "step": step, "num": num, "seed": seed}
    return fid_command({**given, "references": references, **flags}, extractor, out)


def table(result: Mapping[str, Any]) -> str:
    """Formats metrics.json for a terminal: the three comparisons in columns, then warnings."""
    columns = {
        "generated": result,
        "generated, coded references": result.get("against_coded_references", {}),
        "floor: references through the codec": result.get("floor", {}),
    }
    columns = {name: values for name, values in columns.items() if values}
    rows = [
        name
        for name, value in result.items()
        if isinstance(value, float) and not name.endswith("_standard_error")
    ]
    lines = [f"{'':26}" + "".join(f"  {name:>35}" for name in columns)]
    for name in rows:
        cells = [_cell(values, name) for values in columns.values()]
        lines.append(f"{name:26}" + "".join(f"  {cell:>35}" for cell in cells))
    counts = [counted(result[f"n_{what}"], what) for what in ("generated", "references")]
    lines.append(", ".join(counts))
    if result.get("codec"):
        lines.append(", ".join(f"{n} {k.replace('_', ' ')}" for k, n in result["codec"].items()))
    lines += [f"not computed: {name}: {reason}" for name, reason in result["not_computed"].items()]
    return "\n".join(lines + [f"note: {warning}" for warning in result["warnings"]])


def _cell(values: Mapping[str, Any], name: str) -> str:
    if values.get(name) is None:
        return "-"
    return with_error(values[name], values.get(f"{name}_standard_error"))


def _representation(values: Any) -> Representation | None:
    """The one that was named, or that lies in the folder of generated files."""
    if values.representation:
        return representations.load(values.representation)
    where = values.generated or ""
    if where and ":" not in where and (epath.Path(where) / CONFIG_FILE).is_file():
        return representations.load(where)
    return None


def _apply_preset(values: Any) -> None:
    """Sets the flags that a preset stands for. Raises ValueError for those it contradicts."""
    if values.preset is None:
        return
    found = command.given(values, "dims", "resize", "max_neighbours")
    command.refuse_without_effect(found, f"with --preset={values.preset}, which has its own")
    if values.features not in ("auto", "inception"):
        raise ValueError(
            f"found --features={values.features}, but --preset={values.preset} is of inception"
        )
    values.dims, values.resize = "2048", "tf1"


def main(arguments: Sequence[str]) -> None:
    command.no_arguments(arguments)
    checkpoint.quiet_libraries()
    sharding.split_cpu(num_cpus())
    values = flags.FLAGS
    if (values.generated is None) == (values.workdir is None):
        raise ValueError("give either --generated or --workdir")
    if values.workdir is None:
        found = command.given(values, "step", "num", "seed", "labels")
        command.refuse_without_effect(found, "with --generated; they are for --workdir")
    else:
        found = command.given(values, "representation")
        command.refuse_without_effect(found, "with --workdir, which has its own")
    _apply_preset(values)
    representation = _representation(values)
    extractor = extractors.from_flags(values, values.references)
    given: dict[str, Any] = {"floor": values.floor, "per_class": values.per_class}
    given["max_neighbours"] = values.max_neighbours
    if values.workdir:
        generated, representation = sample(
            values.workdir, values.out, values.num, values.seed, values.step, values.labels
        )
        listed = values.labels not in (None, BALANCED)
        sampled: dict[str, Any] = {"num": 1000 if listed else values.num}
        sampled |= {"seed": values.seed, "step": values.step, "labels": values.labels}
        given |= {"references_coded": values.references_coded, "preset": values.preset}
        given |= {"open_as": values.open_as, "npz_features": values.npz_features}
        command_text = sampled_command(
            values.workdir, values.references, values.out, extractor, **sampled, **given
        )
    else:
        generated, command_text = values.generated, None
    result = evaluate(
        generated,
        values.references,
        values.out,
        extractor=extractor,
        representation=representation,
        references_coded=values.references_coded,
        floor=values.floor,
        until=values.until,
        batch_size=values.batch_size,
        max_neighbours=values.max_neighbours,
        preset=values.preset,
        open_as=values.open_as,
        npz_features=values.npz_features,
        per_class=values.per_class,
        command=command_text,
    )
    if result:
        print(table(result))
        if values.per_class:
            print(per_class.table(read_result(epath.Path(values.out) / "classes.json"), _cell))


def _define_flags() -> None:
    flags.DEFINE_string(
        "generated",
        None,
        "Generated images: a folder (of a generate job or any), tar, .array_record, shards, an "
        "earlier OUT/generated, or statistics or a sample batch as .npz.",
    )
    flags.DEFINE_string("workdir", None, "Instead: workdir of a run to generate images with.")
    flags.DEFINE_integer("step", None, "Step of the checkpoint; default the newest.")
    flags.DEFINE_integer("num", 1000, "Number of images to generate.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Random seed of generation.", 0, MAX_SEED)
    flags.DEFINE_string(
        "labels",
        None,
        "balanced: equally many images of each label; or a file of lines LABEL or LABEL,COUNT.",
    )
    flags.DEFINE_boolean("per_class", False, "Also evaluate each class, into OUT/classes.json.")
    flags.DEFINE_string("references", None, "Real images or their statistics, as --generated.")
    flags.DEFINE_string(
        "references_coded", None, "The same after the codec: statistics, or images."
    )
    flags.DEFINE_string("out", None, "Folder to write.", required=True)
    extractors.define_flags()
    flags.DEFINE_string("representation", None, "Folder with the model's representation.json.")
    flags.DEFINE_enum(
        "npz_features",
        None,
        ["inception"],
        "The network of statistics in .npz files that do not state theirs: without it, the "
        "distance is not called FID.",
    )
    flags.DEFINE_boolean("floor", True, "Also evaluate the references after the codec.")
    flags.DEFINE_enum("until", "metrics", STEPS, "The last step to run.")
    flags.DEFINE_enum(
        "preset",
        None,
        metrics.PRESETS,
        "Definitions of an evaluator. adm: Inception score, precision and recall as there, and "
        "--dims=2048 --resize=tf1.",
    )
    flags.DEFINE_enum(
        "open_as",
        "viewer",
        OPEN_AS,
        "How image files become pixels. viewer: with EXIF orientation, colour profile, "
        "transparency on white; peers: without, as other evaluation tools do.",
    )
    flags.DEFINE_integer("batch_size", 32, "Images per call of the network.", lower_bound=1)
    flags.DEFINE_integer(
        "max_neighbours",
        metrics.MAX_NEIGHBOURS,
        "Max images of each set for precision, recall, density and coverage.",
        lower_bound=1,
    )


if __name__ == "__main__":
    _define_flags()
    command.run(main, ShardError)
