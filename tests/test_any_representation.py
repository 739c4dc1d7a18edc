"""Representations without a codec go all the way: prepare, train, generate, complete, likelihood,
FID, follow, report and conversion. What would break here takes a codec for granted.
"""

import json

import numpy as np
import pytest

from data_pipelines import representations
from data_pipelines.prepare import prepare
from data_pipelines.shards.reader import Shards
from evals.compression import compression, table
from evals.evaluation import evaluate
from evals.features import extractors
from evals.follow import follow
from evals.inputs.documents import Documents
from evals.likelihood import likelihood
from evals.report import report
from evals.reporting.results import Evaluation, Run
from jpeglm_jax.convert import from_hf, to_hf
from jpeglm_jax.generation import prompts
from jpeglm_jax.generation.constraint import make_constraint
from jpeglm_jax.generation.job import generate
from jpeglm_jax.generation.manifest import read_manifest
from jpeglm_jax.generation.sampling import SamplingParams
from jpeglm_jax.generation.tokens import Tokens
from jpeglm_jax.train import train
from jpeglm_jax.training import checkpoint
from tests.jpeglm_jax.conftest import tiny
from tests.toy import NAME

CELLS = 16
OPTIONS = {
    "toy": {"name": NAME, "side": 4},
    "clusters": {"name": "pixel", "size": 4, "mode": "L", "clusters": 4, "centres": ""},
    "bytes": {"name": "pixel", "size": 4, "mode": "L", "clusters": 0, "centres": ""},
}
ARTIFACTS = {"toy": "levels.bin", "clusters": "clusters.npy", "bytes": ""}


@pytest.fixture(scope="module", params=OPTIONS)
def which(request):
    """A name in OPTIONS."""
    return request.param


@pytest.fixture(scope="module")
def workdir(which, tmp_path_factory):
    """The folder of a short run."""
    folder = tmp_path_factory.mktemp(which)
    config = tiny(3, seq_len=40)
    del config.representation
    config.representation = OPTIONS[which]
    config.update({"evaluate": {"every": 3}, "sample": {"every": 3}})
    prepare(
        source="digits",
        representation=config.representation.to_dict(),
        out=folder / "data",
        conditional=True,
        copies=1,
        augment={"rotation": 5.0},
        eval_fraction=0.15,
        workers=2,
    )
    config.data.shards = str(folder / "data")
    last = train(config, folder)
    assert last["eval/bits_per_image"] > 0 and "eval/bits_per_byte" not in last
    if which == "bytes":
        per_dimension = last["eval/bits_per_image"] / CELLS
        assert last["eval/bits_per_dimension"] == pytest.approx(per_dimension)
    assert ("eval/bits_per_dimension" in last) == (which == "bytes")
    return folder


def test_shards_hold_its_tokens_and_artefacts(workdir, which):
    shards = Shards(workdir / "data", "eval")
    assert representations.make(num_labels=10, **shards.representation.to_options(workdir / "data"))
    assert shards.representation.num_labels == 10
    assert set(shards.lengths.tolist()) == {CELLS} and not shards.codec_bytes.any()
    (tokens,) = shards.read([0])
    assert tokens.dtype == shards.representation.token_dtype
    name = ARTIFACTS[which]
    assert set(shards.representation.artifacts) == ({name} if name else set())
    if name:
        (workdir / "data" / name).rename(workdir / "data" / "elsewhere")
        with pytest.raises(ValueError, match=name):
            representations.load(workdir / "data")
        (workdir / "data" / "elsewhere").rename(workdir / "data" / name)


@pytest.mark.parametrize("constrained", [False, True])
def test_documents_are_sampled_recorded_and_evaluated(workdir, tmp_path, constrained):
    model = checkpoint.load(workdir)
    representation = model.representation
    counts = generate(
        model,
        tmp_path / "samples",
        prompts.label_requests(representation, prompts.cycle_labels(representation, 40)),
        SamplingParams(),
        constraint=make_constraint(representation) if constrained else None,
    )
    assert counts.requested == 40
    assert counts.written == (counts.valid if representation.suffix else 0)
    assert counts.valid == 40 or not constrained
    documents = Tokens(tmp_path / "samples", read_manifest(tmp_path / "samples"))
    valid = [representation.validate(tokens).valid for tokens in documents]
    assert sum(valid) == counts.valid
    assert (tmp_path / "samples" / "grid.png").is_file()

    result = evaluate(
        str(tmp_path / "samples"),
        f"shards:{workdir / 'data'}:eval",
        tmp_path / "fid",
        extractor=extractors.make("digits"),
        representation=representation,
    )
    assert result["codec"]["requested"] == 40
    assert result["codec"]["strictly_valid"] == counts.valid
    assert np.isfinite(result["frechet_distance"])


def test_real_media_are_completed(workdir, tmp_path):
    model = checkpoint.load(workdir)
    shards = Shards(workdir / "data", "eval")
    work = prompts.completion_requests(
        model.representation, prompts.read_shards(shards), 0.5, max_media=3, seq_len=40
    )
    generate(model, tmp_path, work.requests, SamplingParams(), originals=work.originals)
    lines = read_manifest(tmp_path)
    for line, tokens in zip(lines, Tokens(tmp_path, lines), strict=True):
        np.testing.assert_array_equal(tokens[:8], work.originals[line["source"]][:8])
    assert len(list((tmp_path / "side_by_side").glob("*.png"))) == 3


def test_likelihood_and_the_report(workdir, tmp_path, which):
    model = checkpoint.load(workdir)
    documents = Documents(f"shards:{workdir / 'data'}:eval", model.representation, num=20)
    result = likelihood(model, documents, tmp_path / "likelihood")
    assert result["bits_per_image"] > 0 and "bits_per_byte" not in result
    if which == "bytes":
        assert result["bits_per_dimension"] == pytest.approx(result["bits_per_image"] / CELLS)
    assert ("bits_per_dimension" in result) == (which == "bytes")
    lines = (tmp_path / "likelihood" / "likelihood.jsonl").read_text().splitlines()
    assert len(lines) == 20 and all(json.loads(line)["tokens"] == CELLS for line in lines)
    page = tmp_path / "report.html"
    report([Run.read(workdir)], [Evaluation.read(tmp_path / "likelihood", ("likelihood",))], page)
    assert "bits per image" in page.read_text().lower()


def test_it_is_compared_with_its_files_if_it_has_any(workdir, tmp_path):
    model = checkpoint.load(workdir)
    documents = Documents(f"shards:{workdir / 'data'}:eval", model.representation, num=5)
    if not model.representation.suffix:
        with pytest.raises(ValueError, match="no files to compare"):
            compression(model, documents, tmp_path)
        return
    result = compression(model, documents, tmp_path, write_archive=True)
    assert result["file_bytes_per_image"] > result["model_bytes_per_image"] > 0
    assert "stream_bytes" in result["not_computed"]
    assert not any(name.endswith("_over_stream") for name in result)
    assert table(result).count("bytes") and result["archive"]["files_restored"] == 5


def test_checkpoints_are_followed(workdir):
    extractor = extractors.make("digits")
    found = follow(workdir, f"shards:{workdir / 'data'}:eval", extractor=extractor, num=8)
    assert list(found) == [3] and found[3]["bits_per_image"] > 0


def test_its_weights_are_converted_and_back(workdir, tmp_path):
    to_hf(workdir, tmp_path / "hf")
    config = checkpoint.load(workdir).config
    from_hf(tmp_path / "hf", tmp_path / "back", config)
    first, second = checkpoint.load(workdir), checkpoint.load(tmp_path / "back")
    assert second.representation == first.representation
    assert second.weights_digest == first.weights_digest
    stored = second.config.representation.to_dict()
    assert representations.make(num_labels=10, **stored) == first.representation
    assert "without a codec" in (tmp_path / "hf" / "README.md").read_text()
