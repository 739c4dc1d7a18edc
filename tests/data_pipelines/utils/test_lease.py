"""Two processes never write the same folder."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time

import psutil
import pytest
from etils.epath import testing

from data_pipelines.utils import lease
from data_pipelines.utils.lease import FolderInUse, Lease, Owner


def write(folder, owner):
    (folder / lease.FILE).write_text(json.dumps(dataclasses.asdict(owner)))


def remote_owner():
    return dataclasses.replace(Owner.this_process(), machine="another", host="there", pid=7)


@pytest.fixture
def ended():
    """A process of this machine that has ended, as the owner of a lease."""
    code = (
        "import json, dataclasses; from data_pipelines.utils.lease import Owner;"
        "print(json.dumps(dataclasses.asdict(Owner.this_process())))"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return Owner(**json.loads(result.stdout))


def test_a_second_process_is_refused_at_once_and_the_owner_is_named(tmp_path):
    first = Lease(tmp_path)
    first.acquire()
    began = time.monotonic()
    with pytest.raises(
        FolderInUse, match=rf"{tmp_path}: process {os.getpid()} on .* another folder"
    ):
        Lease(tmp_path).acquire()
    assert time.monotonic() - began < lease.TIMEOUT / 2
    first.release()
    assert not (tmp_path / lease.FILE).exists()
    with Lease(tmp_path) as again:
        again.confirm()
    assert not (tmp_path / lease.FILE).exists()


def test_the_lease_of_a_killed_process_is_taken_over_without_waiting(tmp_path, ended):
    write(tmp_path, ended)
    assert ended.is_alive() is False
    messages = []
    began = time.monotonic()
    taken = Lease(tmp_path, report=messages.append)
    taken.acquire()
    assert time.monotonic() - began < lease.TIMEOUT / 2
    assert f"process {ended.pid}" in messages[0] and "taking over" in messages[0]
    taken.release()


def test_a_process_with_a_reused_id_is_not_the_owner():
    now = Owner.this_process()
    assert now.is_alive() is True
    assert dataclasses.replace(now, started=now.started - 1).is_alive() is False


def test_a_clock_that_is_set_does_not_change_whether_a_process_is_the_same(tmp_path):
    """psutil adds the wall-clock time of boot to the start of a process: here it is 5 s later.

    The owner is this process, and the other one sees a clock that was set forward while it lived.
    """
    with Lease(tmp_path):
        code = (
            "import sys, psutil; later = psutil.boot_time() + 5\n"
            "for module in (psutil, psutil._pslinux if psutil.LINUX else psutil):\n"
            "    module.boot_time = lambda: later\n"
            "import time; now = time.time; time.time = lambda: now() + 5\n"
            "from data_pipelines.utils.lease import FolderInUse, Lease\n"
            "try: Lease(sys.argv[1], timeout=60).acquire()\n"
            "except FolderInUse as error: print(error)\n"
        )
        command = [sys.executable, "-c", code, str(tmp_path)]
        result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert f"process {os.getpid()} " in result.stdout


def test_a_zombie_has_ended():
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
    assert lease.start_time(child.pid) is None
    child.wait()
    assert lease.start_time(child.pid) is None


def test_a_hidden_process_is_watched_by_its_heartbeat(monkeypatch):
    """As with /proc mounted with hidepid=2 and a process of another user."""
    now = Owner.this_process()

    def hidden(pid):
        raise PermissionError(pid)

    monkeypatch.setattr(lease, "start_time", hidden)
    assert now.is_alive() is None


@pytest.mark.parametrize("change, alive", [(0, True), (5.0, None)])
def test_without_proc_a_changed_start_time_is_no_proof(monkeypatch, tmp_path, change, alive):
    """macOS and Windows: psutil's start time may follow the clock, so the heartbeat decides."""
    monkeypatch.setattr(lease, "PROC", tmp_path / "none")
    now = Owner.this_process()
    assert now.started == pytest.approx(psutil.Process().create_time())
    assert dataclasses.replace(now, started=now.started + change).is_alive() is alive
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert dataclasses.replace(now, pid=ended.pid).is_alive() is False


def test_a_process_on_another_machine_without_heartbeat_is_taken_over_after_the_timeout(tmp_path):
    write(tmp_path, remote_owner())
    messages = []
    began = time.monotonic()
    taken = Lease(tmp_path, timeout=1.0, report=messages.append)
    taken.acquire()
    assert time.monotonic() - began >= 1.0
    assert "waiting 1 s" in messages[0]
    taken.release()


def test_a_process_on_another_machine_with_a_heartbeat_is_not_taken_over(tmp_path):
    there = remote_owner()
    write(tmp_path, there)
    renewal = threading.Timer(0.4, write, (tmp_path, dataclasses.replace(there, heartbeat=1)))
    renewal.start()
    with pytest.raises(FolderInUse, match="process 7 on there"):
        Lease(tmp_path, timeout=3.0).acquire()
    renewal.join()


def test_an_owner_renews_its_lease(tmp_path):
    held = Lease(tmp_path, timeout=0.6)
    held.acquire()
    heartbeat = json.loads((tmp_path / lease.FILE).read_text())["heartbeat"]
    deadline = time.monotonic() + 30
    while json.loads((tmp_path / lease.FILE).read_text())["heartbeat"] < heartbeat + 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    held.check()
    held.confirm()
    held.release()


def test_an_owner_that_lost_its_lease_stops_writing(tmp_path):
    """As a process that was frozen and woke after the timeout of another."""
    frozen = Lease(tmp_path, timeout=60)
    frozen.acquire()
    write(tmp_path, remote_owner())
    frozen.check()  # has not read the file yet
    with pytest.raises(FolderInUse, match="process 7 on there"):
        frozen.confirm()
    with pytest.raises(FolderInUse):
        frozen.check()
    frozen.release()
    assert (tmp_path / lease.FILE).exists(), "the other's lease must stay"


def test_of_two_simultaneous_runs_one_acquires_the_lease(tmp_path, monkeypatch):
    """Both find no lease and write one; reading it back decides."""
    outcomes = []
    together = threading.Barrier(2)

    write_atomically = lease.write_atomically

    def write_together(path, data):
        if threading.current_thread() in threads:
            together.wait()
        write_atomically(path, data)

    monkeypatch.setattr(lease, "write_atomically", write_together)

    def take():
        one = Lease(tmp_path)
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


def test_a_lease_in_a_bucket(bucket, ended):
    first = Lease("gs://bucket/run", timeout=6)
    first.acquire()
    assert (bucket / "run" / lease.FILE).exists()
    with pytest.raises(FolderInUse, match="gs://bucket/run: process"):
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


def test_a_file_that_is_no_lease_is_refused(tmp_path):
    (tmp_path / lease.FILE).write_text("?")
    with pytest.raises(FolderInUse, match="lease.json .* delete"):
        Lease(tmp_path).acquire()
