"""The command line, worker processes, array jobs, Beam, full disks and kills."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from data_pipelines import representations
from data_pipelines.preparation import launchers, listing
from data_pipelines.preparation.job import SettingsError
from data_pipelines.shards import storage
from data_pipelines.shards.storage import ShardError
from data_pipelines.utils import files
from data_pipelines.utils.files import WriteError
from tests.data_pipelines.preparation.helpers import OPTIONS, ROOT, hashes, run


def command(photos, out, *arguments):
    config = ROOT / "configs" / "jpeg.py"
    return [
        *(sys.executable, "-m", "data_pipelines.prepare", f"--config={config}:digits"),
        *(f"--source=folder:{photos}", f"--out={out}", "--copies=0", *arguments),
    ]


def test_the_command_line_prepares_and_prints_counts(photos, tmp_path):
    done = subprocess.run(
        command(photos, tmp_path / "out", "--workers=2", "--num_shards=4"),
        **dict(cwd=ROOT, capture_output=True, text=True, timeout=120),
    )
    assert done.returncode == 0, done.stderr
    assert "is complete" in done.stdout and "0 rejected" in done.stdout
    assert "image/s" in done.stderr
    assert representations.load(tmp_path / "out").num_labels == 2
    assert "skipped: 0" in done.stdout and "nothing was made" not in done.stdout
    again = subprocess.run(
        command(photos, tmp_path / "out", "--num_shards=4"),
        **dict(cwd=ROOT, capture_output=True, text=True, timeout=120),
    )
    assert "nothing was made" in again.stdout and "--config.data.shards=A,B" in again.stdout


def test_help_shows_an_example_first():
    done = subprocess.run(
        [sys.executable, "-m", "data_pipelines.prepare", "--help"],
        **dict(cwd=ROOT, capture_output=True, text=True, timeout=60),
    )
    assert done.stdout.strip().startswith("Example: python -m data_pipelines.prepare")


def test_a_missing_source_ends_the_command_with_one_sentence(tmp_path):
    done = subprocess.run(
        command(tmp_path / "nowhere", tmp_path / "out"),
        **dict(cwd=ROOT, capture_output=True, text=True, timeout=60),
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("SourceError: ")


def test_an_unknown_setting_ends_the_command_with_one_sentence(photos, tmp_path):
    done = subprocess.run(
        command(photos, tmp_path / "out", "--config.data.eval_fracton=0.1"),
        **dict(cwd=ROOT, capture_output=True, text=True, timeout=60),
    )
    assert done.returncode and "eval_fracton" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("task", "num_tasks"), [(3, 3), (-1, 2), (0, 0)])
def test_a_task_out_of_range_is_refused_without_waiting(photos, tmp_path, task, num_tasks):
    with pytest.raises(ValueError, match=f"task is {task} of {num_tasks}"):
        run(photos, tmp_path / "out", task=task, num_tasks=num_tasks)
    assert not (tmp_path / "out").exists()


def test_workers_do_not_import_jax():
    code = "import sys, data_pipelines.preparation.worker; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_tasks_wait_for_the_set_up(photos, tmp_path):
    with pytest.raises(SettingsError, match="job.json did not appear within.*task 0"):
        run(photos, tmp_path / "out", task=1, num_tasks=2, setup_timeout=0.1)


def test_array_tasks_started_together_complete_the_folder(photos, prepared_with_eval, tmp_path):
    code = (
        "import sys; from data_pipelines.prepare import prepare;"
        f"prepare(source='folder:{photos}', representation={OPTIONS}, num_shards=4,"
        f"eval_fraction=0.2, out={str(tmp_path / 'tasks')!r}, workers=1,"
        "task=int(sys.argv[1]), num_tasks=3)"
    )
    tasks = [subprocess.Popen([sys.executable, "-c", code, str(n)], cwd=ROOT) for n in (2, 1, 0)]
    assert [task.wait(timeout=60) for task in tasks] == [0, 0, 0]
    assert hashes(tmp_path / "tasks") == hashes(prepared_with_eval)


def test_a_killed_worker_is_reported_and_the_next_run_completes(
    photos, prepared, tmp_path, monkeypatch
):
    start = launchers.start_worker

    def start_and_kill():
        worker = start()
        worker.kill()
        return worker

    monkeypatch.setattr(launchers, "start_worker", start_and_kill)
    with pytest.raises(ShardError, match=r"train-0000\d-of-00004 died \(signal 9\)"):
        run(photos, tmp_path / "out", workers=2)
    monkeypatch.undo()
    run(photos, tmp_path / "out", workers=2)
    assert hashes(tmp_path / "out") == hashes(prepared)


def test_an_error_in_a_worker_reaches_the_caller(photos, tmp_path):
    run(photos, tmp_path / "out", task=0, num_tasks=4)
    (tmp_path / "out" / "listing" / "train-00003-of-00004.jsonl").write_text("")
    with pytest.raises(ShardError, match="train-00003-of-00004.jsonl"):
        run(photos, tmp_path / "out", workers=2)


def test_a_full_disk_is_reported_and_the_next_run_completes(
    photos, prepared, tmp_path, monkeypatch
):
    writer = storage.array_record_module.ArrayRecordWriter
    opened = []

    class FullDisk:
        """Fails on closing the third shard, as the real writer does on a full disk."""

        def __init__(self, path, options):
            opened.append(path)
            self._writer = writer(path, options)
            self.ok, self.write = self._writer.ok, self._writer.write

        def close(self):
            self._writer.close()
            if len(opened) == 3:
                raise RuntimeError("write() failed: No space left on device")

    monkeypatch.setattr(storage.array_record_module, "ArrayRecordWriter", FullDisk)
    with pytest.raises(WriteError, match="No space left.*MiB are free.*same command again"):
        run(photos, tmp_path / "out")
    monkeypatch.undo()
    assert not list((tmp_path / "out").glob(".*"))
    run(photos, tmp_path / "out")
    assert hashes(tmp_path / "out") == hashes(prepared)


def test_beam_makes_the_same_shards(photos, prepared_with_eval, tmp_path):
    pytest.importorskip("apache_beam", reason="the extra [beam] is not installed")
    beam = run(photos, tmp_path / "beam", eval_fraction=0.2, launcher="beam")
    assert hashes(beam) == hashes(prepared_with_eval)


def test_a_remote_folder_gets_the_same_files_by_copy(photos, tmp_path, monkeypatch):
    options = dict(eval_fraction=0.2, drop_duplicates=True)
    whole = run(photos, tmp_path / "whole", **options)
    for module in (files, listing, storage):
        monkeypatch.setattr(module, "is_remote", lambda path: "bucket" in str(path))
    replaced = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: replaced.append(paths) or replace(*paths))
    remote = run(photos, tmp_path / "bucket", **options)
    assert hashes(remote) == hashes(whole)
    assert replaced == []  # an object store cannot rename
    assert not list(remote.glob(".*"))


def test_an_unknown_launcher_is_refused(photos, tmp_path):
    with pytest.raises(SettingsError, match="'pool' or 'beam'"):
        run(photos, tmp_path / "out", launcher="ray")


def kill_and_restart(photos, tmp_path, kills):
    """Kills the process group (SIGKILL) at random times, then lets one run finish."""
    code = (
        "from data_pipelines.prepare import prepare;"
        f"prepare(source='folder:{photos}', representation={OPTIONS}, num_shards=8, copies=4,"
        f"eval_fraction=0.1, out={str(tmp_path / 'killed')!r}, workers=2)"
    )
    options = dict(num_shards=8, copies=4, eval_fraction=0.1, workers=2)
    began = time.monotonic()
    start = [sys.executable, "-c", code]
    subprocess.run(start, cwd=ROOT, check=True, stderr=subprocess.DEVNULL, timeout=120)
    took = time.monotonic() - began
    whole = hashes(tmp_path / "killed")
    rng = random.Random(kills)
    # Kills happen in all phases: listing, the first shard, the last, the manifest.
    for _ in range(kills):
        folder = tmp_path / "killed"
        if rng.random() < 0.5:
            subprocess.run(["rm", "-r", str(folder)], check=True)
        process = subprocess.Popen(
            start, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(rng.uniform(0.2 * took, took))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if folder.exists() and rng.random() < 0.5:
            run(photos, folder, **options)
            assert hashes(folder) == whole
    run(photos, tmp_path / "killed", **options)
    assert hashes(tmp_path / "killed") == whole
    assert json.loads((tmp_path / "killed" / "manifest.json").read_text())


def test_killed_three_times_and_resumed_gives_the_same_shards(photos, tmp_path):
    kill_and_restart(photos, tmp_path, 3)


@pytest.mark.slow
def test_killed_twenty_times_and_resumed_gives_the_same_shards(photos, tmp_path):
    kill_and_restart(photos, tmp_path, 20)
