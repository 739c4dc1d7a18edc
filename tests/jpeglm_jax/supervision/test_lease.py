"""Two runs never write one folder."""

import dataclasses
import json
import subprocess
import sys
import threading
import time

import pytest
from etils.epath import testing

from jpeglm_jax.supervision import lease
from jpeglm_jax.supervision.lease import FolderInUse, Holder, Lease


def write(folder, holder):
    (folder / lease.FILE).write_text(json.dumps(dataclasses.asdict(holder)))


def holder_elsewhere():
    return dataclasses.replace(Holder.this_process(), machine="another", host="there", pid=7)


@pytest.fixture
def ended():
    """A process of this machine that has ended, as the holder of a lease."""
    code = (
        "import json, dataclasses; from jpeglm_jax.supervision.lease import Holder;"
        "print(json.dumps(dataclasses.asdict(Holder.this_process())))"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return Holder(**json.loads(said.stdout))


def test_a_second_run_is_refused_at_once_and_told_by_whom(tmp_path):
    first = Lease(tmp_path)
    first.acquire()
    began = time.monotonic()
    with pytest.raises(FolderInUse, match=r"being written by process \d+ on .* another --workdir"):
        Lease(tmp_path).acquire()
    assert time.monotonic() - began < lease.SILENCE / 2
    first.release()
    assert not (tmp_path / lease.FILE).exists()
    again = Lease(tmp_path)
    again.acquire()
    again.release()


def test_what_a_killed_run_left_is_taken_over_without_waiting(tmp_path, ended):
    write(tmp_path, ended)
    assert ended.fate() is False
    said = []
    began = time.monotonic()
    taken = Lease(tmp_path, say=said.append)
    taken.acquire()
    assert time.monotonic() - began < lease.SILENCE / 2
    assert f"process {ended.pid}" in said[0] and "taking over" in said[0]
    taken.release()


def test_a_number_that_came_again_is_not_the_process_that_had_it():
    now = Holder.this_process()
    assert now.fate() is True
    assert dataclasses.replace(now, started=now.started - 60).fate() is False


def test_a_silent_run_out_of_sight_is_waited_for_then_taken_over(tmp_path):
    write(tmp_path, holder_elsewhere())
    said = []
    began = time.monotonic()
    taken = Lease(tmp_path, silence=1.0, say=said.append)
    taken.acquire()
    assert time.monotonic() - began >= 1.0
    assert "cannot be seen from here: waiting 1 s" in said[0]
    taken.release()


def test_a_run_out_of_sight_that_gives_a_sign_of_life_is_not_taken_over(tmp_path):
    there = holder_elsewhere()
    write(tmp_path, there)
    renewal = threading.Timer(0.4, write, (tmp_path, dataclasses.replace(there, beat=1)))
    renewal.start()
    with pytest.raises(FolderInUse, match="process 7 on there"):
        Lease(tmp_path, silence=3.0).acquire()
    renewal.join()


def test_a_holder_renews_its_lease(tmp_path):
    held = Lease(tmp_path, silence=0.6)
    held.acquire()
    beat = json.loads((tmp_path / lease.FILE).read_text())["beat"]
    deadline = time.monotonic() + 30
    while json.loads((tmp_path / lease.FILE).read_text())["beat"] < beat + 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    held.check()
    held.confirm()
    held.release()


def test_a_holder_that_was_taken_over_writes_no_more(tmp_path):
    """As one that was frozen, and woke after another had waited for long enough."""
    frozen = Lease(tmp_path, silence=60)
    frozen.acquire()
    write(tmp_path, holder_elsewhere())
    frozen.check()  # has not looked yet
    with pytest.raises(FolderInUse, match="process 7 on there"):
        frozen.confirm()
    with pytest.raises(FolderInUse):
        frozen.check()
    frozen.release()
    assert (tmp_path / lease.FILE).exists(), "the other's lease must stay"


def test_of_two_in_the_same_moment_one_gets_the_folder(tmp_path):
    """Both find nothing and write; reading back decides."""
    outcomes = []
    together = threading.Barrier(2)

    class Slow(Lease):
        def _write(self):
            if not self._thread.is_alive():
                together.wait()
            super()._write()

    def take():
        one = Slow(tmp_path)
        try:
            one.acquire()
            outcomes.append(one)
        except FolderInUse:
            outcomes.append(None)

    threads = [threading.Thread(target=take) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [one for one in outcomes if one]
    winner.release()


@pytest.fixture
def bucket(tmp_path):
    """`gs://bucket` in a folder of this machine: no links, no exclusive creation, no renaming."""

    def local(path):
        return str(path).replace("gs://bucket", str(tmp_path), 1)

    with testing.mock_epath(
        open=lambda original, path, mode: original(local(path), mode),
        makedirs=lambda original, path, **options: original(local(path), **options),
        remove=lambda original, path: original(local(path)),
    ):
        yield tmp_path


def test_in_a_bucket_it_is_the_same(bucket, ended):
    first = Lease("gs://bucket/run", silence=6)
    first.acquire()
    assert (bucket / "run" / lease.FILE).exists()
    with pytest.raises(FolderInUse, match="gs://bucket/run is being written by process"):
        Lease("gs://bucket/run").acquire()
    write(bucket / "run", ended)
    with pytest.raises(FolderInUse, match=f"process {ended.pid}"):
        first.confirm()
    first.release()
    second = Lease("gs://bucket/run")
    second.acquire()
    second.confirm()
    second.release()
    assert not (bucket / "run" / lease.FILE).exists()


def test_a_lease_that_nobody_wrote_is_refused_with_what_to_do(tmp_path):
    (tmp_path / lease.FILE).write_text("?")
    with pytest.raises(FolderInUse, match="is not what a run writes; .* delete it"):
        Lease(tmp_path).acquire()
