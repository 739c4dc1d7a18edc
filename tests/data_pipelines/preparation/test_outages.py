"""Errors of the storage or of a worker stop preparation with a reason; the same call resumes."""

import json
import os
import subprocess
import sys
import time

import pytest

from data_pipelines.preparation import launchers, process
from data_pipelines.prepare import folder_lease
from data_pipelines.shards.storage import ShardError
from data_pipelines.sources import SourceError
from data_pipelines.utils.files import StorageUnavailable
from data_pipelines.utils.lease import FolderInUse
from tests.data_pipelines.preparation.helpers import ROOT, hashes, make_photos, rejects, run


@pytest.mark.parametrize("workers", [1, 2])
def test_a_source_that_goes_away_stops_and_the_same_call_resumes(tmp_path, workers):
    photos = make_photos(tmp_path / "photos", 60)
    whole = hashes(run(photos, tmp_path / "whole"))
    run(photos, tmp_path / "out", task=0, num_tasks=4)
    photos.rename(tmp_path / "away")
    for empty in (False, True):
        if empty:
            photos.mkdir()  # the mount point
        with pytest.raises((StorageUnavailable, SourceError), match="photos"):
            run(photos, tmp_path / "out", workers=workers)
    photos.rmdir()
    (tmp_path / "away").rename(photos)
    run(photos, tmp_path / "out", workers=workers)
    again = hashes(tmp_path / "out")
    assert rejects(tmp_path / "out") == {}
    changed = {name for name in whole if whole[name] != again[name]}
    assert not changed


def test_a_source_that_goes_away_between_two_images_rejects_none(photos, tmp_path, monkeypatch):
    source = type(process.open_source(f"folder:{photos}"))
    read = source.read
    count = []

    def fail_later(self, locator):
        count.append(locator)
        if len(count) > 100:
            raise StorageUnavailable("the mount is gone")
        return read(self, locator)

    monkeypatch.setattr(source, "read", fail_later)
    with pytest.raises(StorageUnavailable, match="the mount is gone"):
        run(photos, tmp_path / "out")
    with pytest.raises(StorageUnavailable):  # while a tokenizer is trained, too
        run(photos, tmp_path / "bpe", train_tokenizer={"vocab_size": 300, "documents": 50})
    monkeypatch.undo()
    out = run(photos, tmp_path / "out")
    assert rejects(out) == {} and not list(out.glob(".*"))


def fail_with(monkeypatch, statement):
    """Workers run a statement instead of their loop."""
    code = f"import sys, os\nspec = sys.stdin.readline()\n{statement}"

    def start():
        return subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    monkeypatch.setattr(launchers, "start_worker", start)


@pytest.mark.parametrize(
    "kills, words", [((0, 1), "memory ran out.*fewer --workers"), ((3, 3), "")]
)
def test_only_a_kill_for_lack_of_memory_is_explained_by_it(
    photos, tmp_path, monkeypatch, kills, words
):
    counts = iter([kills[0]] + [kills[1]] * 10)
    monkeypatch.setattr(launchers, "out_of_memory_kills", lambda: next(counts))
    fail_with(monkeypatch, "os.kill(os.getpid(), 9)")
    with pytest.raises(ShardError, match=rf"died \(signal 9.*{words}") as error:
        run(photos, tmp_path / "out", workers=2)
    assert ("memory" in str(error.value)) == bool(words)


@pytest.mark.parametrize("kind", [SourceError, StorageUnavailable])
def test_an_error_about_the_source_keeps_its_type_between_processes(
    photos, tmp_path, monkeypatch, kind
):
    message = json.dumps({"error": "no bucket", "kind": kind.__name__})
    fail_with(monkeypatch, f"print({message!r}, flush=True); sys.stdin.read()")
    with pytest.raises(kind, match="no bucket"):
        run(photos, tmp_path / "out", workers=2)


def test_an_unexpected_error_of_a_worker_is_named(photos, tmp_path, monkeypatch):
    message = json.dumps({"error": "TypeError: a bug", "kind": ""})
    fail_with(monkeypatch, f"print({message!r}, flush=True); sys.stdin.read()")
    with pytest.raises(ShardError, match="failed .TypeError: a bug"):
        run(photos, tmp_path / "out", workers=2)


def test_a_second_preparation_of_a_folder_is_refused(photos, prepared, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with folder_lease(out, task=0, num_tasks=1):
        with pytest.raises(
            FolderInUse, match=f"another process writes {out}: process {os.getpid()}"
        ):
            run(photos, out)
        with pytest.raises(FolderInUse):
            run(photos, out, task=1, num_tasks=2)
    run(photos, out)
    assert hashes(out) == hashes(prepared)


def test_the_tasks_of_one_array_job_share_a_folder(tmp_path):
    with folder_lease(tmp_path, task=0, num_tasks=3):
        with pytest.raises(FolderInUse), folder_lease(tmp_path, task=0, num_tasks=3):
            pass
        with pytest.raises(FolderInUse), folder_lease(tmp_path, task=0, num_tasks=1):
            pass
        with folder_lease(tmp_path, task=2, num_tasks=3):
            assert len(list(tmp_path.iterdir())) == 2
    assert not list(tmp_path.iterdir())


def test_leases_of_a_killed_job_of_another_size_are_taken_over(photos, tmp_path):
    code = (
        "import sys, time; from etils import epath; from data_pipelines import prepare\n"
        "with prepare.folder_lease(epath.Path(sys.argv[1]), 3, 7):\n"
        "    print('owned', flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "out")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout.readline() == "owned\n"
    with pytest.raises(FolderInUse):
        run(photos, tmp_path / "out")
    owner.kill()
    owner.wait()
    began = time.monotonic()
    assert not list(run(photos, tmp_path / "out").glob("lease*"))
    assert time.monotonic() - began < 30


def test_a_complete_folder_needs_no_lease(photos, prepared):
    with folder_lease(prepared, task=0, num_tasks=1):
        before = hashes(prepared)
        assert hashes(run(photos, prepared)) == before
