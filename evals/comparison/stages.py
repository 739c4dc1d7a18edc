"""The stages of a comparison, each done once, see `Once`.

tokenizer -> prepare -> floor -> overfit -> learning rates -> runs (train, sample, score, complete)
-> the paper's analyses
"""

from __future__ import annotations

import collections
import json
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from data_pipelines.prepare import prepare
from data_pipelines.shards.reader import Shards
from evals import completion, digits, longtail
from evals.comparison import image_sets, plan
from evals.comparison.once import Deadline, Once
from evals.comparison.overfit import overfit
from evals.comparison.plan import Layout, Run
from evals.evaluation import evaluate
from evals.features import half_size
from evals.features.base import Extractor
from evals.inputs.codec import GeneratedImages
from evals.inputs.documents import Documents
from evals.inputs.images import open_images
from evals.likelihood import eval_split
from evals.reporting import results
from jpeglm_jax.generation import prompts
from jpeglm_jax.generation.engine import Engine
from jpeglm_jax.generation.job import generate
from jpeglm_jax.generation.pictures import GRID
from jpeglm_jax.generation.sampling import SamplingParams
from jpeglm_jax.model.spec import ModelSpec
from jpeglm_jax.model.trained import TrainedModel
from jpeglm_jax.parallel import sharding
from jpeglm_jax.tokenizer.flops import train_flops_per_image
from jpeglm_jax.tokenizer.step import step_of
from jpeglm_jax.train import train
from jpeglm_jax.train_tokenizer import trained_tokenizer
from jpeglm_jax.training import checkpoint

LONG_TAIL = "long_tail"  # the stage, and its folder
_FLOOR_IMAGES = 1000  # of which the PSNR is taken
_CODED = "references_coded"  # folder of an evaluation
_ARCHIVE = "samples.npz"  # of a run


class Stages:
    """The stages of one comparison in its folder.

    Args:
      config: see configs/compare.py.
      out: folder of the comparison.
      extractor: of the features that samples are scored with; None: they are not scored.
      deadline: of this process.
      say: called with a line at the start of each stage.
    """

    def __init__(
        self,
        config: ConfigDict,
        out: epath.Path,
        extractor: Extractor | None,
        deadline: Deadline,
        say: Callable[[str], None] = print,
    ):
        self._config, self._out = config, out
        self._extractor, self._deadline = extractor, deadline
        self._once = Once(out / "stages", deadline, say)
        self._layouts: dict[str, Layout] = {}
        self._fitted_references: dict[str, epath.Path] = {}  # their features, by size and mode
        self._coded_references: dict[str, epath.Path] = {}  # the same by codec

    # Data

    def tokenizer(self, candidate: str) -> dict[str, Any]:
        """Trains the learned tokenizer of a candidate; its `flops` are 0 if it has none."""
        options = self._config.candidates[candidate].tokenizer
        if not options:
            return {"flops": 0.0}

        def work() -> dict[str, Any]:
            config = options.copy_and_resolve_references()
            config.data.source = self._config.data.source
            config.data.eval_fraction = self._config.data.eval_fraction
            workdir = self._tokenizer(candidate)
            with self._deadline.interrupting():
                trained_tokenizer(config, workdir)
            images = config.steps * config.batch_size
            last = results.Run.read(workdir).lines[-1]
            return {
                **{key: value for key, value in last.items() if key.startswith("eval/")},
                "flops": images * train_flops_per_image(step_of(config)),
            }

        return self._once(f"tokenizer-{candidate}", work)

    def _tokenizer(self, candidate: str) -> epath.Path:
        return self._out / "tokenizers" / candidate

    def prepare(self, candidate: str) -> dict[str, Any]:
        """Encodes the source as documents of a candidate."""
        config, folder = self._config, self.shards(candidate)

        def work() -> dict[str, Any]:
            options = config.candidates[candidate]
            weights = {"weights": str(self._tokenizer(candidate))} if options.tokenizer else {}
            prepare(
                source=config.data.source,
                representation=options.representation.to_dict() | weights,
                out=folder,
                conditional=config.data.conditional and options.conditional,
                copies=config.data.copies,
                augment=config.data.augment.to_dict(),
                eval_fraction=config.data.eval_fraction,
                train_tokenizer=options.train_tokenizer.to_dict(),
            )
            return plan.layout(config, folder, jax.device_count())._asdict()

        found = self._once(f"prepare-{candidate}", work)
        self._layouts[candidate] = Layout(**found)
        return found

    def shards(self, candidate: str) -> epath.Path:
        """The folder of a candidate's shards."""
        return self._out / "data" / candidate

    def floor(self, candidate: str) -> dict[str, Any]:
        """What a candidate's documents lose of real images: the PSNR of their reconstructions."""

        def work() -> dict[str, Any]:
            representation = Shards(self.shards(candidate)).representation
            real = open_images(self._config.data.source)
            chosen = np.random.default_rng(0).permutation(len(real))[:_FLOOR_IMAGES]
            fitted = [representation.fit(real.decode(n, real.read(n))) for n in np.sort(chosen)]
            decoded = representation.decode_batch(representation.encode_batch(fitted))
            errors = [
                np.mean(np.square(np.asarray(a, np.float64) - np.asarray(b.convert(a.mode))))
                for a, b in zip(fitted, decoded, strict=True)
            ]
            error = float(np.mean(errors))
            return {
                "images": len(fitted),
                "psnr_db": 10 * math.log10(255**2 / error) if error else None,
            }

        return self._once(f"floor-{candidate}", work)

    def references(self) -> str:
        """The spec of the images that samples are compared with.

        With `config.references_per_class` these are at most so many images of each class, written
        as files in one folder per class.
        """
        config = self._config
        if not config.references_per_class:
            return str(config.data.source)
        folder = self._out / "references"

        def work() -> dict[str, Any]:
            count = config.references_per_class
            return {"images": image_sets.write_references(config.data.source, folder, count)}

        self._once("references", work)
        return f"folder:{folder}"

    # The gate, and the learning rate

    def overfit(self, candidate: str) -> dict[str, Any]:
        """Learns a few documents by heart; raises OverfitError if that fails."""

        def work() -> dict[str, Any]:
            config = self._config
            shards = Shards(self.shards(candidate))
            # Evenly spaced, so that they are of different images: copies of one lie together.
            numbers = np.linspace(0, len(shards) - 1, config.overfit.documents).astype(int)
            documents = shards.read(list(numbers))
            return overfit(
                self._train_config(self._smallest(candidate), 1, max(config.learning_rates) / 2),
                shards.representation,
                documents,
                sharding.make_mesh({"replica": 1}, devices=jax.devices()[:1]),
                config.overfit.max_steps,
            )

        return self._once(f"overfit-{candidate}", work)

    def learning_rate(self, candidate: str) -> float:
        """The learning rate with the fewest bits per image of the eval split, of short runs."""
        rates = self._config.learning_rates
        if len(rates) == 1:
            return rates[0]
        bits = {rate: self.sweep(candidate, rate)["eval/bits_per_image"] for rate in rates}
        return min(bits, key=bits.__getitem__)

    def sweep(self, candidate: str, rate: float) -> dict[str, Any]:
        """A short run of a candidate at a learning rate."""
        run = self._smallest(candidate)
        num_steps = max(1, round(self._config.sweep * self.steps(run)))
        name = f"sweep-{candidate}-{rate:g}"
        return self._once(
            name, lambda: self._trained(name, self._train_config(run, num_steps, rate))
        )

    def _smallest(self, candidate: str) -> Run:
        """The run that a candidate is tuned for: the smallest model, under the last budget."""
        config = self._config
        return Run(candidate, plan.models(config)[0], config.budgets[-1], config.seed)

    # Runs

    def steps(self, run: Run) -> int:
        """Steps of a run under its budget."""
        tokenizer_flops = self.tokenizer(run.candidate)["flops"]
        return plan.steps(self._config, run, self._layouts, tokenizer_flops)

    def flops(self, run: Run) -> float:
        """Training FLOPs of a run, with those of its candidate's learned tokenizer."""
        per_step = plan.flops_per_step(self._config, run.model, self._layouts[run.candidate])
        return self.steps(run) * per_step + self.tokenizer(run.candidate)["flops"]

    def train(self, run: Run, learning_rate: float) -> dict[str, Any]:
        """Trains a model under its budget. Two budgets of equally many steps are one run."""
        twin = self._same_run(run)
        if twin is not None:
            return self.train(twin, learning_rate)

        def work() -> dict[str, Any]:
            num_steps = self.steps(run)
            rows = self._layouts[run.candidate]
            found = self._trained(run.name, self._train_config(run, num_steps, learning_rate))
            return {
                **found,
                "learning_rate": learning_rate,
                "steps": num_steps,
                "images_seen": round(num_steps * rows.images_per_step),
                "train_flops": self.flops(run),
            }

        return self._once(f"train-{run.name}", work)

    def _same_run(self, run: Run) -> Run | None:
        """The run under an earlier budget that is the same one."""
        for budget in self._config.budgets:
            if budget == run.budget:
                return None
            other = Run(run.candidate, run.model, budget, run.seed)
            if self.steps(other) == self.steps(run):
                return other
        return None

    def workdir(self, run: Run) -> epath.Path:
        """Of a training run."""
        return self._out / "runs" / (self._same_run(run) or run).name

    def _train_config(self, run: Run, num_steps: int, learning_rate: float) -> ConfigDict:
        return plan.train_config(
            self._config,
            run,
            self.shards(run.candidate),
            self._layouts[run.candidate],
            num_steps,
            learning_rate,
        )

    def _trained(self, name: str, config: ConfigDict) -> dict[str, Any]:
        workdir = self._out / "runs" / name
        with self._deadline.interrupting():
            train(config, workdir)
        last = results.Run.read(workdir).lines[-1]
        evaluated = {key: value for key, value in last.items() if key.startswith("eval/")}
        if "eval/bits_per_image" not in evaluated:
            raise plan.PlanError(f"{workdir} ended without an evaluation; remove it and run again")
        spec = ModelSpec(checkpoint.describe(workdir).model("cpu"))
        return {**evaluated, "parameters": spec.num_parameters}

    def sample(self, run: Run) -> dict[str, Any]:
        """Samples images of a run by label, and measures the rate."""
        folder = self.workdir(run) / "sampled"

        def work() -> dict[str, Any]:
            model = checkpoint.load(self.workdir(run))
            options = self._config.sample
            labels = prompts.cycle_labels(model.representation, options.num)
            requests = prompts.label_requests(model.representation, labels)
            counts = generate(
                model,
                folder,
                requests,
                SamplingParams.from_config(options),
                seed=run.seed,
                batch_size=options.batch_size,
            )
            assert counts is not None
            found: dict[str, Any] = {
                "sampled": counts.requested,
                "valid": counts.valid / counts.requested,
                "images_per_second": _rate(model, options, run.seed),
            }
            if self._config.recognise:
                found["recognised"] = digits.recognition(folder)["recognised"]
            found["archive"] = image_sets.write_samples(
                GeneratedImages(folder, model.representation),
                self.workdir(run) / _ARCHIVE,
            )
            return found

        return self._once(f"sample-{(self._same_run(run) or run).name}", work)

    def grid(self, run: Run) -> str:
        """The path of a run's sample grid in the folder of the comparison."""
        return str((self.workdir(run) / "sampled" / GRID).relative_to(self._out))

    def archive(self, run: Run) -> str:
        """The path of a run's samples, as one file, in the folder of the comparison."""
        return str((self.workdir(run) / _ARCHIVE).relative_to(self._out))

    def score(self, run: Run) -> dict[str, Any]:
        """Distances of a run's samples from real images, and of the codec's reconstructions.

        {} without an extractor.
        """
        if self._extractor is None:
            return {}
        run = self._same_run(run) or run
        workdir, evaluation = self.workdir(run), self._evaluation(run)

        def work() -> dict[str, Any]:
            references, coded = self._shared_references(run.candidate)
            result = evaluate(
                str(workdir / "sampled"),
                references,
                evaluation,
                extractor=self._extractor,
                representation=checkpoint.describe(workdir).representation,
                references_coded=coded,
            )
            return dict(result)

        found = self._once(f"score-{run.name}", work)
        if (evaluation / "references").is_dir():
            self._fitted_references.setdefault(self._fit(run.candidate), evaluation / "references")
        if (evaluation / _CODED).is_dir():
            self._coded_references.setdefault(self._codec(run.candidate), evaluation / _CODED)
        return found

    def _evaluation(self, run: Run) -> epath.Path:
        """The folder of the features of a run's samples."""
        return self.workdir(run) / "evaluation"

    def _shared_references(self, candidate: str) -> tuple[str, str | None]:
        """The references before and after a candidate's codec: their features, if there are any."""
        images = self.references()
        fitted = self._fitted_references.get(self._fit(candidate))
        coded = self._coded_references.get(self._codec(candidate))
        if fitted is None:
            return images, None  # the evaluation puts them through the codec
        return str(fitted), images if coded is None else str(coded)

    def _fit(self, candidate: str) -> str:
        """What decides the pixels of references before a candidate's codec."""
        options = self._config.candidates[candidate].representation
        return f"{options.get('size')}, {options.get('mode', 'RGB')}"

    def _codec(self, candidate: str) -> str:
        """What decides the pixels of a candidate's documents: not its tokenizer."""
        options = self._config.candidates[candidate].representation.to_dict()
        options.pop("tokenizer", None)
        return json.dumps(options, sort_keys=True)

    def completes(self, run: Run) -> bool:
        """Whether a run completes images: the analysed runs of the candidates that are named."""
        options = self._config.completion
        named = options.num and run.candidate in options.candidates
        return bool(named) and run == self._largest(run.candidate)

    def complete(self, run: Run) -> dict[str, Any]:
        """The paper's completion protocol on images of the eval split."""
        options = self._config.completion
        workdir = self.workdir(run)
        extractor = self._extractor
        assert extractor is not None  # `plan.check`

        def work() -> dict[str, Any]:
            model = checkpoint.load(workdir)
            references, coded = self._shared_references(run.candidate)
            documents = Documents(
                eval_split(model, workdir), model.representation, options.num, run.seed
            )
            return completion.completion(
                model,
                documents,
                references,
                workdir / "completed",
                extractor=extractor,
                references_coded=coded,
                ratios=options.ratios,
                seeds=1,
                seed=run.seed,
                sampling_params=SamplingParams.from_config(self._config.sample),
                batch_size=self._config.sample.batch_size,
            )

        return self._once(f"complete-{(self._same_run(run) or run).name}", work)

    def completed(self, run: Run) -> str:
        """The path of a run's completions in the folder of the comparison."""
        return str((self.workdir(run) / "completed").relative_to(self._out))

    # The paper's analyses

    def long_tail(self) -> dict[str, Any]:
        """Distance by class of two candidates, and its correlation with the class frequency."""
        a, b = (self._largest(candidate) for candidate in self._config.long_tail)
        real = open_images(self._config.data.source)
        counts = collections.Counter(real.label(number) for number in range(len(real)))
        frequencies = {name: float(counts[n]) for n, name in enumerate(real.label_names)}
        extractor = self._extractor
        assert extractor is not None

        def work() -> dict[str, Any]:
            scored = {
                side: self._evaluation(run) / "generated" for side, run in (("a", a), ("b", b))
            }
            return longtail.longtail(
                str(self.workdir(a) / "sampled"),
                str(self.workdir(b) / "sampled"),
                self.references(),
                frequencies,
                self._out / LONG_TAIL,
                extractor=extractor,
                folders={**scored, "references": self._fitted_references[self._fit(a.candidate)]},
            )

        return self._once(LONG_TAIL, work)

    def small_elements(self, candidate: str) -> dict[str, Any]:
        """Completion of images at half size on black, compared in that region only."""
        run, options = self._largest(candidate), self._config.completion
        folder = self._out / "small_elements" / candidate
        extractor = self._extractor
        assert extractor is not None

        def work() -> dict[str, Any]:
            model = checkpoint.load(self.workdir(run))
            images = folder / "images"
            real = open_images(self._config.data.source)
            half_size.write(real, model.representation, images, options.num, run.seed)
            return completion.completion(
                model,
                Documents(f"folder:{images}", model.representation),
                f"folder:{images}",
                folder / "completed",
                extractor=half_size.on_active_region(extractor),
                ratios=options.ratios,
                seeds=1,
                seed=run.seed,
                sampling_params=SamplingParams.from_config(self._config.sample),
                batch_size=self._config.sample.batch_size,
            )

        return self._once(f"small_elements-{candidate}", work)

    def completed_small(self, candidate: str) -> str:
        """The path of these completions in the folder of the comparison."""
        return f"small_elements/{candidate}/completed"

    def _largest(self, candidate: str) -> Run:
        """The run of a candidate that is analysed: the largest model, under the last budget."""
        config = self._config
        return Run(candidate, plan.models(config)[-1], config.budgets[-1], config.seed)


def _rate(model: TrainedModel, options: ConfigDict, seed: int) -> float:
    """Images per second when a full batch is sampled, without compilation."""
    representation = model.representation
    labels = prompts.cycle_labels(representation, options.batch_size)
    starts = [request.prompt for request in prompts.label_requests(representation, labels)]
    engine = Engine(
        model.spec,
        model.mesh,
        SamplingParams.from_config(options),
        batch_size=options.batch_size,
        seq_len=model.sampling_len(starts),
        seed=seed,
        eos=representation.eos,
        bos=representation.bos,
    )
    numbers = range(len(starts))
    list(engine(model.params, starts, numbers))
    begin = time.perf_counter()
    list(engine(model.params, starts, numbers))
    return len(starts) / (time.perf_counter() - begin)
