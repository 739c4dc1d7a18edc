"""A command restarts itself once with memory in large pages, as the same process."""

import os
import platform
import subprocess
import sys

import pytest

from jpeglm_jax.hardware import large_pages
from jpeglm_jax.hardware.large_pages import restart_with_large_pages

PROGRAM = """
import os, sys
from jpeglm_jax.hardware.large_pages import restart_with_large_pages
print(os.getpid(), flush=True)
restart_with_large_pages()
print(os.environ.get("GLIBC_TUNABLES"), sys.argv[1:], sys.flags.utf8_mode)
"""


def run(tunables=None):
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    if tunables is not None:
        environment["GLIBC_TUNABLES"] = tunables
    command = [sys.executable, "-X", "utf8", "-c", PROGRAM, "--flag", "a b"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return result.stdout.splitlines()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of the GNU C library")
def test_a_command_restarts_once_with_its_arguments():
    first, second, last = run()
    assert first == second, "the same process, so that its launcher can still signal it"
    tunables, rest = last.split(" ", 1)
    assert tunables.startswith("glibc.malloc.hugetlb=1") and rest == "['--flag', 'a b'] 1"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of the GNU C library")
def test_other_settings_of_the_allocator_are_kept():
    found = run("glibc.malloc.arena_max=2")[-1].split(" ")[0].split(":")
    assert found[:2] == ["glibc.malloc.arena_max=2", "glibc.malloc.hugetlb=1"]
    assert sum("arena_max" in each for each in found) == 1


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of the GNU C library")
@pytest.mark.parametrize("on_cpu", [True, False])
def test_memory_is_kept_where_a_cpu_trains(on_cpu, tmp_path, monkeypatch):
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(large_pages, "_ACCELERATORS", () if on_cpu else (f"{tmp_path}/nvidia*",))
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    monkeypatch.setattr(large_pages.os, "execv", lambda *command: None)
    restart_with_large_pages()
    assert ("glibc.malloc.mmap_max=0" in os.environ["GLIBC_TUNABLES"].split(":")) == on_cpu


def test_an_existing_setting_of_large_pages_is_kept():
    lines = run("glibc.malloc.hugetlb=0")
    assert len(lines) == 2
    assert lines[-1].startswith("glibc.malloc.hugetlb=0 ")
