"""Command lines end in one sentence for what a user can cause."""

import subprocess
import sys
from pathlib import Path

import pytest

from data_pipelines.utils.files import StorageUnavailable, missing_driver, unknown_scheme

ROOT = Path(__file__).parents[3]


def call(module, *arguments):
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        **dict(cwd=ROOT, capture_output=True, text=True, timeout=100),
    )


@pytest.mark.parametrize("scheme", ["https", "hdfs", "file"])
@pytest.mark.parametrize(
    "module, arguments",
    [
        ("data_pipelines.prepare", ["--config=configs/jpeg.py:digits", "--out={}"]),
        ("data_pipelines.describe", ["--shards={}"]),
    ],
)
def test_an_unknown_scheme_ends_in_one_sentence(module, arguments, scheme):
    done = call(module, *(argument.format(f"{scheme}://host/x") for argument in arguments))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"begins with {scheme}://, expected a local path, gs:// or s3://" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "error, words",
    [
        (ImportError("Please install gcsfs to access Google Storage"), r"pip install -e '.\[gcs]'"),
        (ImportError("Install s3fs to access S3"), "pip install s3fs"),
    ],
)
def test_a_missing_driver_of_a_bucket_is_named(error, words):
    assert words.replace("\\", "") in missing_driver(error)
    assert missing_driver(ImportError("no module named jax")) is None


def test_known_paths_have_known_schemes():
    assert [unknown_scheme(path) for path in ("a/b", "/a:b", "gs://b", "s3://b/c")] == [None] * 4
    assert "write '/data/x'" in unknown_scheme("file:///data/x")


def test_an_outage_is_no_error_that_rejects_files():
    assert not issubclass(StorageUnavailable, ValueError | OSError)


def test_a_message_keeps_its_quotation_marks():
    code = """
from absl import flags
from data_pipelines.utils import command
class Parser(flags.ArgumentParser):
    def parse(self, text):
        raise ValueError("found 'x', expected 'a' or 'b'")
flags.DEFINE(Parser(), "name", None, "")
command.run(print)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "--name=x"],
        **dict(cwd=ROOT, capture_output=True, text=True, timeout=100),
    )
    assert done.returncode == 2
    assert done.stderr.strip().endswith("found 'x', expected 'a' or 'b'")
