"""Results of one model are never taken for those of another."""

import dataclasses
import json
import shutil

import jax
import pytest
from etils import epath

from evals import fid, follow
from evals.evaluation import evaluate
from evals.features import extractors
from evals.features.base import FeatureError
from evals.reporting.results import SettingsError, claim_folder
from evals.suite import suite
from jpeglm_jax.generation import job
from jpeglm_jax.generation.manifest import JobError
from jpeglm_jax.training import checkpoint


def with_other_weights(load):
    """`checkpoint.load` of a run that has the same settings and step, but other weights."""

    def loaded(*arguments):
        model = load(*arguments)
        params = jax.tree.map(lambda leaf: -leaf, model.params)
        return dataclasses.replace(model, params=params)

    return loaded


def test_samples_of_another_model_with_the_same_settings_are_refused(
    digits_run, digit_files, tmp_path, monkeypatch
):
    folder, _ = fid.sample(str(digits_run), tmp_path, num=4, seed=0, step=None)
    files = {path: path.read_bytes() for path in epath.Path(folder).glob("*.jpg")}
    monkeypatch.setattr(checkpoint, "load", with_other_weights(checkpoint.load))
    with pytest.raises(JobError, match="weights is .* here and .* there"):
        fid.sample(str(digits_run), tmp_path, num=4, seed=0, step=None)
    with pytest.raises(JobError, match="weights is "):
        suite(digits_run, digit_files, tmp_path, extractors.make("digits"), num=4)
    assert files == {path: path.read_bytes() for path in epath.Path(folder).glob("*.jpg")}


def test_a_run_that_replaced_another_in_its_workdir_is_not_followed_with_its_results(
    digits_run, digit_files, tmp_path, monkeypatch
):
    workdir = tmp_path / "run"
    shutil.copytree(digits_run, workdir)
    options = {"extractor": extractors.make("digits"), "num": 4, "num_eval": 2}
    found = follow.follow(workdir, digit_files, **options)
    assert follow.follow(workdir, digit_files, **options) == found
    monkeypatch.setattr(checkpoint, "load", with_other_weights(checkpoint.load))
    with pytest.raises(SettingsError, match="another run: the weights of step 4"):
        follow.follow(workdir, digit_files, **options)


def test_an_unfinished_job_is_not_evaluated(digits_run, digit_files, tmp_path, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "write_document", stop)
    with pytest.raises(KeyboardInterrupt):
        fid.sample(str(digits_run), tmp_path, num=4, seed=0, step=None)
    (folder,) = tmp_path.glob("samples-*")
    with pytest.raises(FeatureError, match="not finished"):
        evaluate(str(folder), digit_files, tmp_path / "out", extractor=extractors.make("digits"))


def test_files_of_no_evaluation_are_not_overwritten(digit_files, tmp_path):
    (tmp_path / "metrics.json").write_text('{"accuracy": 0.5}')
    with pytest.raises(SettingsError, match="no result of an evaluation"):
        evaluate(digit_files, digit_files, tmp_path, extractor=extractors.make("digits"))
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"accuracy": 0.5}
    with pytest.raises(SettingsError, match="files of no such job"):
        claim_folder(epath.Path(tmp_path), {"seed": 0})
    (tmp_path / "new").mkdir()
    claim_folder(epath.Path(tmp_path / "new"), {"seed": 0})
    with pytest.raises(SettingsError, match="seed is 1 here and 0 there"):
        claim_folder(epath.Path(tmp_path / "new"), {"seed": 1})
