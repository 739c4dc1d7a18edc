"""Example: python -m evals.suite --workdir=runs/jpeg-digits --out=evaluation

Evaluates a run with one command: generates images and compares them with real ones (evals.fid),
computes bits of the eval split (evals.likelihood), compares the model with other codes as a
compressor (evals.compression), and writes one page (OUT/report.html, evals.report). Generation and
features are resumed after an interruption. The separate jobs have more options.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags
from etils import epath

from data_pipelines.shards.storage import ShardError
from data_pipelines.utils import command
from data_pipelines.utils.cpus import num_cpus
from data_pipelines.utils.seeds import MAX_SEED
from evals import compression, fid, likelihood, report
from evals.evaluation import evaluate
from evals.features import extractors
from evals.features.base import Extractor
from evals.inputs.documents import Documents
from evals.reporting.results import Evaluation, Run
from evals.sections.kinds import KINDS
from jpeglm_jax.parallel import sharding
from jpeglm_jax.training import checkpoint

PAGE = "report.html"


def suite(
    workdir: epath.PathLike,
    references: str,
    out: epath.PathLike,
    extractor: Extractor,
    *,
    num: int,
    num_eval: int = 0,
    seed: int = 0,
    step: int | None = None,
) -> epath.Path:
    """Evaluates a run and writes the page.

    Args:
      workdir: of the run.
      references: real images, see `evaluation.evaluate`.
      out: folder to write.
      extractor: of the features.
      num: number of images to generate.
      num_eval: number of documents of the eval split to score, sampled at random; 0: all.
      seed: of generation and of the random subset.
      step: of the checkpoint; default the newest.

    Returns:
      The path of the page.

    Raises:
      ValueError (of several kinds): inputs that cannot be used or cannot be compared.
    """
    out = epath.Path(out)
    generated, representation = fid.sample(str(workdir), out, num, seed, step)
    metrics = evaluate(
        generated,
        references,
        out,
        extractor=extractor,
        representation=representation,
        command=fid.sampled_command(
            workdir, references, out, extractor, num=num, seed=seed, step=step
        ),
    )
    print(fid.table(metrics))
    model = checkpoint.load(workdir, step)
    documents = Documents(
        likelihood.eval_split(model, workdir), model.representation, num_eval, seed
    )
    print(likelihood.table(likelihood.likelihood(model, documents, out)))
    print(compression.table(compression.compression(model, documents, out)))
    page = out / PAGE
    report.report([Run.read(workdir)], [Evaluation.read(out, tuple(KINDS))], page)
    return page


def main(arguments: Sequence[str]) -> None:
    command.no_arguments(arguments)
    checkpoint.quiet_libraries()
    sharding.split_cpu(num_cpus())
    values = flags.FLAGS
    references = values.references
    if references is None:
        source = checkpoint.describe(values.workdir, values.step).config.data.source
        if source != "digits":
            raise ValueError(
                f"the run was trained on {source or 'prepared shards'}, which has no default "
                "reference set: give --references"
            )
        references = source
    extractor = extractors.from_flags(values, references)
    if extractor is None:
        raise ValueError("no extractor: give --weights of the FID network, or --features")
    page = suite(
        values.workdir,
        references,
        values.out,
        extractor,
        num=values.num,
        num_eval=values.num_eval,
        seed=values.seed,
        step=values.step,
    )
    print(f"wrote {page}")


def _define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Workdir of a training run.", required=True)
    flags.DEFINE_integer("step", None, "Step of the checkpoint; default the newest.")
    flags.DEFINE_string("references", None, "Real images; default digits for a run on digits.")
    flags.DEFINE_string("out", None, "Folder to write.", required=True)
    extractors.define_flags()
    flags.DEFINE_integer("num", 1000, "Number of images to generate.", lower_bound=1)
    flags.DEFINE_integer(
        "num_eval", 0, "Documents of the eval split to score; 0: all.", lower_bound=0
    )
    flags.DEFINE_integer("seed", 0, "Random seed.", 0, MAX_SEED)


if __name__ == "__main__":
    _define_flags()
    command.run(main, ShardError)
