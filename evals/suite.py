"""Example: python -m evals.suite --workdir=runs/jpeg-digits --out=evaluation

Everything there is to say of a run, by one command: draws documents and compares them with real
images (evals.fid), bits of held-out documents (evals.likelihood), the model as a compressor beside
other codes (evals.compression), and one page of it all (OUT/report.html). Each part goes on where
it was stopped; with more to say about each, the jobs can be run by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags
from etils import epath

from data_pipelines.utils import command
from data_pipelines.utils.cpus import num_cpus
from evals import compression, fid, likelihood, report
from evals.evaluation import evaluate
from evals.features import extractors
from evals.features.features import Extractor
from evals.inputs.documents import Documents
from evals.reporting.results import Evaluation, Run
from evals.sections import KINDS
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
    num_held_out: int = 0,
    seed: int = 0,
    step: int | None = None,
) -> epath.Path:
    """Evaluates a run and writes the page.

    Args:
      workdir: of the run.
      references: real images, see `evals.fid`.
      out: folder to write.
      extractor: what generated and real images are compared with.
      num: documents to draw.
      num_held_out: held-out documents whose bits are counted, at random; 0: all.
      seed: decides what is drawn.
      step: which checkpoint; default the newest.

    Returns:
      The path of the page.

    Raises:
      ValueError (of several kinds): inputs that cannot be used or do not belong together.
    """
    out = epath.Path(out)
    generated, representation = fid.sample(str(workdir), out, num, seed, step)
    print(
        fid.table(
            evaluate(generated, references, out, extractor=extractor, representation=representation)
        )
    )
    model = checkpoint.load(workdir, step)
    where = likelihood.held_out(model, workdir)
    documents = Documents(where, model.representation, num_held_out, seed)
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
                f"give --references: the run was trained on {source or 'prepared shards'}, and "
                "what it is to be compared with is not known"
            )
        references = source
    extractor = extractors.from_flags(values, references)
    if extractor is None:
        raise ValueError("give --weights of the FID network; only digits can do without")
    page = suite(
        values.workdir,
        references,
        values.out,
        extractor,
        num=values.num,
        num_held_out=values.num_held_out,
        seed=values.seed,
        step=values.step,
    )
    print(f"wrote {page}")


def _define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Workdir of a training run.", required=True)
    flags.DEFINE_integer("step", None, "Which checkpoint; default the newest.")
    flags.DEFINE_string("references", None, "Real images; default those of a run on digits.")
    flags.DEFINE_string("out", None, "Folder to write.", required=True)
    extractors.define_flags()
    flags.DEFINE_integer("num", 1000, "Documents to draw.")
    flags.DEFINE_integer("num_held_out", 0, "Held-out documents to count bits of; 0: all.")
    flags.DEFINE_integer("seed", 0, "Decides what is drawn.")


if __name__ == "__main__":
    _define_flags()
    command.run(main)
