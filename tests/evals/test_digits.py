"""evals.digits: digits in clips are recognised in two frames; the result and its section."""

import dataclasses

import numpy as np
import pytest

from data_pipelines import representations, sources
from data_pipelines.sources.generated import moving_digits
from evals import digits
from evals.report import report
from evals.reporting.results import Evaluation, SettingsError
from evals.sections.kinds import KINDS
from jpeglm_jax.generation import job, prompts
from jpeglm_jax.generation.sampling import Sample, SamplingParams
from jpeglm_jax.training import checkpoint
from tests.evals.models import untrained
from tests.evals.reporting.reader import read
from tests.evals.schema import follows_schema

OPTIONS = dict(size=(48, 48), fps=4, frames=8, slice_mbs=0, strip="headers", num_labels=10)


def test_the_brightest_square_is_the_digit():
    clip = moving_digits.render(3)
    digit = digits.brightest_digit(clip[0])
    assert digit.shape == (64,) and digit.max() <= 16
    np.testing.assert_allclose(
        digits.brightest_digit(np.repeat(clip[0][..., None], 3, axis=-1)), digit
    )
    moved = np.roll(np.pad(clip[0], 8), (3, -2), (0, 1))
    np.testing.assert_allclose(digits.brightest_digit(moved), digit)


@pytest.mark.parametrize("tokenizer", ["bytes", "codewords"])
def test_clips_count_as_recognised_in_both_frames(tmp_path, monkeypatch, tokenizer):
    representation = representations.make("avc", tokenizer=tokenizer, **OPTIONS)
    source = sources.open_source("moving_digits:12", "video")
    items = list(source.items())
    media = [next(iter(representation.open(source.read(item.locator)))) for item in items]
    clips = [representation.fit(each) for each in media]
    documents = [representation.encode(clip) for clip in clips]
    documents[0] = documents[0][:0]  # nothing decodes
    other = next(number for number, item in enumerate(items) if item.label != items[1].label)
    documents[1] = representation.encode(np.concatenate([clips[1][:7], clips[other][7:]]))

    class Engine:
        def __init__(self, *arguments, **options):
            pass

        def __call__(self, params, prompts, numbers):
            return (Sample(number, documents[number], True, -1.0) for number in numbers)

    monkeypatch.setattr(job, "Engine", Engine)
    model = dataclasses.replace(untrained(), representation=representation)
    requests = prompts.label_requests(representation, [item.label for item in items])
    job.generate(model, tmp_path / "out", requests, SamplingParams())
    found = digits.recognition(tmp_path / "out")
    assert follows_schema(found)
    assert found["requested"] == 12 and found["settings"]["validity"] == "tokens, now"
    assert found["strictly_valid"] == pytest.approx(11 / 12)
    assert found["classifier_accuracy"] > 0.9
    assert 8 / 12 <= found["recognised_first"] <= 11 / 12
    assert found["recognised"] <= found["recognised_last"] <= 10 / 12


def test_the_result_is_written_for_the_page(digits_run, tmp_path):
    model = checkpoint.load(digits_run)
    requests = prompts.label_requests(model.representation, list(range(10)))
    job.generate(model, tmp_path / "samples", requests, SamplingParams())
    found = digits.recognition(tmp_path / "samples", tmp_path / "out")
    assert follows_schema(found, tmp_path / "out" / "digits.json")
    assert found["command"].endswith(f"--out={tmp_path / 'out'}")
    assert found["settings"]["validity"] == "tokens, now"
    assert found["recognised_standard_error"] > 0
    assert f"{100 * found['classifier_accuracy']:.4g} %" in digits.table(found)
    report([], [Evaluation.read(tmp_path / "out", tuple(KINDS))], tmp_path / "page.html")
    section = read((tmp_path / "page.html").read_text()).by_id("digits")
    rows = [head.text for head in section.all("th") if head.attributes["scope"] == "row"]
    assert len(rows) == 3 and rows[0].startswith("Recognised")
    (tmp_path / "out" / "digits.json").write_text("{}")
    with pytest.raises(SettingsError, match=r"digits\.json"):
        digits.recognition(tmp_path / "samples", tmp_path / "out")
