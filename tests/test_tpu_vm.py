"""launch/tpu_vm.sh with stand-ins for gcloud and for the programs of the machines."""

import os
import pathlib
import signal
import subprocess
import sys
import threading

import pytest

SCRIPT = pathlib.Path(__file__).parents[1] / "launch" / "tpu_vm.sh"
NOT_FOUND = "ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: it was not found"
BLIP = "ERROR: (gcloud) There was a problem refreshing auth tokens"

# Answers from files ANSWERS/VERB, a line per call: "STATUS TEXT"; the last line is repeated. `ssh`
# runs the command in the folder HOME_OF_MACHINE if its line is "run".
GCLOUD = """#!/bin/bash
for verb in describe create delete ssh; do [[ " $* " == *" $verb "* ]] && break; done
echo "$verb" >>"$ANSWERS/calls"
lines="$ANSWERS/$verb"
read -r status text <"$lines"
[ "$(wc -l <"$lines")" -gt 1 ] && sed -i 1d "$lines"
if [ "$status" = run ]; then
  for argument; do [[ $argument == --command=* ]] && command=${argument#--command=}; done
  cd "$HOME_OF_MACHINE" && exec bash -c "$command"
fi
if [ "$status" = 0 ]; then echo "$text"; else echo "$text" >&2; fi
exit "$status"
"""


@pytest.fixture
def bench(tmp_path):
    """A function that runs the script with the answers of gcloud to each kind of call."""
    programs, answers, home = (tmp_path / name for name in ("bin", "answers", "home"))
    for folder in (programs, answers, home):
        folder.mkdir()

    def program(name, text):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)

    def run(seconds=60, **lines):
        for verb, texts in lines.items():
            (answers / verb).write_text("".join(text + "\n" for text in texts))
        result = subprocess.run(
            ["bash", SCRIPT, "slice", "v5litepod-8", "zone", "gs://shards", "gs://run"],
            env={
                "PATH": f"{programs}:{os.environ['PATH']}",
                "REPOSITORY": "https://example.org/jpeglm",
                "ANSWERS": str(answers),
                "HOME_OF_MACHINE": str(home),
            },
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        return result, (answers / "calls").read_text().split()

    program("gcloud", GCLOUD)
    program("sleep", "#!/bin/bash\nexit 0\n")
    run.program, run.home = program, home
    return run


def test_a_describe_that_fails_is_asked_again_and_nothing_is_created(bench):
    describe = [f"1 {BLIP}"] * 7 + ["0 ACTIVE"]
    result, calls = bench(describe=describe, ssh=["0"], delete=["0"])
    assert result.returncode == 0, result.stderr
    assert calls == ["describe"] * 8 + ["ssh", "delete"]
    assert result.stderr.count(BLIP) == 7 and "slice: " in result.stderr


def test_a_slice_that_is_gone_is_created_again_and_each_state_is_reported_once(bench):
    describe = [f"1 {NOT_FOUND}", *["0 WAITING_FOR_RESOURCES"] * 3, f"1 {BLIP}", "0 ACTIVE"]
    describe += ["0 SUSPENDED", f"1 {NOT_FOUND}", "0 ACTIVE"]
    result, calls = bench(describe=describe, create=["0"], ssh=["255", "0"], delete=["0"])
    assert result.returncode == 0, result.stderr
    assert calls == [
        *("describe", "create"),
        *["describe"] * 4,
        *("describe", "ssh"),  # preempted
        *("describe", "delete"),
        *("describe", "create"),
        *("describe", "ssh", "delete"),
    ]
    assert result.stderr.count("WAITING_FOR_RESOURCES") == 1


def test_create_and_delete_may_fail(bench):
    result, calls = bench(
        describe=[f"1 {NOT_FOUND}", f"1 {NOT_FOUND}", "0 FAILED", "0 FAILED", "0 ACTIVE"],
        create=[f"1 {BLIP}", "0"],
        delete=[f"1 {BLIP}", "0", f"1 {BLIP}", "0"],
        ssh=["0"],
    )
    assert result.returncode == 0, result.stderr
    assert calls.count("create") == 2
    assert calls.count("delete") == 4, "once for the failed slice, once at the end, each repeated"


def test_failures_of_training_or_of_creation_end_the_script_after_five(bench):
    result, calls = bench(describe=["0 ACTIVE"], ssh=["1"])
    assert result.returncode == 1 and calls.count("ssh") == 5 and "delete" not in calls
    result, calls = bench(describe=[f"1 {NOT_FOUND}"], create=["1 ERROR: no such type"])
    assert result.returncode == 1 and calls.count("create") == 5
    assert "no such type" in result.stderr


# The programs of a machine. The first `git clone` and the first `pip install` fail.
GIT = """#!/bin/bash
mkdir "${@: -1}"
[ -f "$HOME_OF_MACHINE/git" ] || { touch "$HOME_OF_MACHINE/git"; exit 128; }
"""
PYTHON3 = """#!/bin/bash
mkdir -p .venv/bin
cat >.venv/bin/pip <<'END'
#!/bin/bash
[ -f "$HOME_OF_MACHINE/pip" ] || { touch "$HOME_OF_MACHINE/pip"; exit 1; }
touch "$HOME_OF_MACHINE/package"
END
cat >.venv/bin/python <<'END'
#!/bin/bash
[ -f "$HOME_OF_MACHINE/package" ] && echo "$@" >>"$HOME_OF_MACHINE/trained"
END
chmod +x .venv/bin/*
"""


def test_a_machine_installs_although_clone_and_pip_fail_for_a_moment(bench):
    bench.program("git", GIT)
    bench.program("python3", PYTHON3)
    result, calls = bench(describe=["0 ACTIVE"], ssh=["run"], delete=["0"])
    assert result.returncode == 0 and calls == ["describe", "ssh", "delete"], result.stderr
    assert "clone failed" in result.stderr and "install failed" in result.stderr
    trained = (bench.home / "trained").read_text()
    assert trained.startswith("-m jpeglm_jax.train --distributed")
    # Again on the same machine: nothing is installed.
    (bench.home / "git").unlink()
    (bench.home / "pip").unlink()
    result, _ = bench(describe=["0 ACTIVE"], ssh=["run"], delete=["0"])
    assert result.returncode == 0
    assert (bench.home / "trained").read_text() == trained * 2


def test_an_installation_that_was_cut_off_is_done_again(bench):
    """A folder .venv without the packages, as after a machine was lost during pip."""
    bench.program("python3", PYTHON3)
    (bench.home / "jpeglm" / ".venv").mkdir(parents=True)
    result, _ = bench(describe=["0 ACTIVE"], ssh=["run"], delete=["0"])
    assert result.returncode == 0, result.stderr
    assert (bench.home / "trained").exists()


def test_a_training_process_of_a_lost_connection_is_ended_first(bench):
    bench.program("git", GIT)
    bench.program("python3", PYTHON3)
    (bench.home / "git").touch()
    code = "import sys, time; print(flush=True); time.sleep(100)"
    arguments = [sys.executable, "-c", code, "jpeglm_jax.train"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as old:
        old.stdout.readline()
        (bench.home / "jpeglm").mkdir()
        (bench.home / "jpeglm" / "train.pid").write_text(str(old.pid))
        # Until its parent waits for it, a process that has ended can still be signalled.
        threading.Thread(target=old.wait, daemon=True).start()
        result, _ = bench(describe=["0 ACTIVE"], ssh=["run"], delete=["0"])
    assert result.returncode == 0, result.stderr
    assert old.returncode == -signal.SIGTERM
    assert (bench.home / "trained").exists()
