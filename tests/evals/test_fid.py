"""evals.fid: generates images with a run and evaluates them."""

import json
import os

from evals import fid
from evals.evaluation import evaluate
from evals.features import extractors


def test_a_run_generates_once_and_every_document_counts(digits_run, digit_files, tmp_path):
    folder, representation = fid.sample(str(digits_run), tmp_path, num=20, seed=0, step=None)
    written = os.stat(f"{folder}/manifest.jsonl").st_mtime_ns
    assert fid.sample(str(digits_run), tmp_path, num=20, seed=0, step=None) == (
        folder,
        representation,
    )
    assert os.stat(f"{folder}/manifest.jsonl").st_mtime_ns == written
    found = evaluate(
        folder,
        digit_files,
        tmp_path,
        extractor=extractors.make("digits"),
        representation=representation,
    )
    codec = found["codec"]
    assert codec["requested"] == found["n_generated"] == 20
    assert codec["strictly_valid"] + codec["salvaged"] + codec["failed"] == 20
    assert codec["units"] <= codec["expected_units"] and codec["expected_units"] % 20 == 0
    floor = found["floor"]["frechet_distance"]
    assert 0 < floor < found["frechet_distance"]
    text = fid.table(found)
    assert "floor" in text and "20 requested" in text
    json.dumps(found, allow_nan=False)


def test_the_command_names_the_checkpoint(digits_run, tmp_path):
    given = (digits_run, "digits", tmp_path, extractors.make("digits"))
    newest = fid.sampled_command(*given, num=20, seed=0, step=None)
    assert "--step=4" in newest
    assert newest == fid.sampled_command(*given, num=20, seed=0, step=4)
    assert "--step=2" in fid.sampled_command(*given, num=20, seed=0, step=2)
