"""Runs `process_shard` in local worker processes, on a device, in an array job, or under Beam.

Running the same spec twice is safe.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import Any, TextIO

from data_pipelines.preparation.memory import out_of_memory_kills
from data_pipelines.preparation.process import Progress, ShardSpec, process_shard
from data_pipelines.shards.storage import ShardError
from data_pipelines.sources import SourceError
from data_pipelines.utils.files import StorageUnavailable, WriteError

# Errors that stop a job; a worker sends them by name.
_ERRORS = {
    error.__name__: error for error in (ShardError, WriteError, SourceError, StorageUnavailable)
}


def check_task(task: int, num_tasks: int) -> None:
    """Raises ValueError unless 0 <= task < num_tasks."""
    if not 0 <= task < num_tasks:
        raise ValueError(f"task is {task} of {num_tasks}; expected 0 <= task < num_tasks")


def of_task(specs: Sequence[ShardSpec], task: int, num_tasks: int) -> list[ShardSpec]:
    """The specs of one task of an array job, 0 <= task < num_tasks."""
    return list(specs[task::num_tasks])


def run_pool(specs: Sequence[ShardSpec], workers: int, progress: Progress) -> None:
    """Makes the shards in worker processes (one worker: in this process).

    Workers are new interpreters that receive specs as lines of JSON. They import this package only
    (not JAX, whose import takes seconds, locks devices and does not survive a fork), and they end
    with the caller.

    Args:
      specs: shards to make.
      workers: maximum number of processes; at most one per spec is started.
      progress: called from several threads, one at a time.

    Raises:
      ShardError, WriteError: a shard could not be written, or a worker died.
      StorageUnavailable, SourceError: the source as a whole cannot be read.
      Each of them stops the other workers.
    """
    workers = min(workers, len(specs))
    if workers <= 1:
        for spec in specs:
            process_shard(spec, progress)
        return
    _Pool(specs, workers, progress).run()


def run_worker(read: TextIO, write: TextIO) -> None:
    """The loop of a worker: reads specs, writes progress and results, one line of JSON each."""

    def send(**message: Any) -> None:
        write.write(json.dumps(message) + "\n")
        write.flush()

    def report(made: int, rejected: int) -> None:
        send(made=made, rejected=rejected)

    for line in read:
        try:
            process_shard(ShardSpec(**json.loads(line)), report)
        except tuple(_ERRORS.values()) as error:
            send(error=str(error), kind=type(error).__name__)
        except Exception as error:
            traceback.print_exc()
            send(error=f"{type(error).__name__}: {error}", kind="")
        else:
            send(done=True)


def run_beam(specs: Sequence[ShardSpec], pipeline_arguments: Sequence[str]) -> None:
    """Makes the shards under Apache Beam, which only distributes the specs.

    Args:
      specs: shards to make; Beam's workers must be able to access their folder.
      pipeline_arguments: Beam's own flags (`--runner=...`); docs/data.md lists some.

    Raises:
      ImportError: Apache Beam is not installed.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise ImportError(
            "--launcher=beam needs Apache Beam: pip install 'apache-beam' (the extra [beam])"
        ) from error
    with beam.Pipeline(options=PipelineOptions(list(pipeline_arguments))) as pipeline:
        _ = (
            pipeline
            | beam.Create([dataclasses.asdict(spec) for spec in specs])
            # Without Reshuffle a runner may fuse both steps and make all shards on one worker.
            | beam.Reshuffle()
            | beam.Map(_process_fields)
        )


def _process_fields(fields: dict[str, Any]) -> str:
    return process_shard(ShardSpec(**fields))["name"]


def start_worker() -> subprocess.Popen[str]:
    """Starts a worker process, which reads specs from its stdin."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    return subprocess.Popen(
        [sys.executable, "-m", "data_pipelines.preparation.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=environment,
    )


def _close(worker: subprocess.Popen[str]) -> None:
    for pipe in (worker.stdin, worker.stdout):
        assert pipe is not None
        with contextlib.suppress(OSError):  # undelivered data is not needed
            pipe.close()


def run_on_device(specs: Sequence[ShardSpec], progress: Progress) -> None:
    """Makes the shards in this process, for a representation that encodes on JAX's devices.

    Worker processes would each hold the devices. Images are opened in threads meanwhile, see
    `process_shard`.

    Args:
      specs: shards to make.
      progress: see `run_pool`.

    Raises: as `run_pool`.
    """
    for spec in specs:
        process_shard(spec, progress)


class _Pool:
    """Worker processes, each served by a thread that sends specs and reads results."""

    def __init__(self, specs: Sequence[ShardSpec], workers: int, progress: Progress):
        self._todo: queue.SimpleQueue[ShardSpec] = queue.SimpleQueue()
        for spec in specs:
            self._todo.put(spec)
        self._progress = progress
        self._lock = threading.Lock()
        self._failures: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
        self._kills = out_of_memory_kills()
        self._workers = [start_worker() for _ in range(workers)]

    def run(self) -> None:
        threads = [threading.Thread(target=self._serve, args=(w,)) for w in self._workers]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            self._stop()
            for thread in threads:
                thread.join()
            for worker in self._workers:
                _close(worker)
        if not self._failures.empty():
            raise self._failures.get()

    def _stop(self) -> None:
        for worker in self._workers:
            with contextlib.suppress(ProcessLookupError):
                worker.kill()
            worker.wait()

    def _serve(self, worker: subprocess.Popen[str]) -> None:
        with contextlib.suppress(queue.Empty):
            while self._failures.empty():
                spec = self._todo.get_nowait()
                try:
                    self._make(worker, spec)
                except Exception as error:
                    self._failures.put(error)
                    self._stop()

    def _make(self, worker: subprocess.Popen[str], spec: ShardSpec) -> None:
        assert worker.stdin is not None and worker.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            worker.stdin.write(json.dumps(dataclasses.asdict(spec)) + "\n")
            worker.stdin.flush()
        for line in worker.stdout:
            message = json.loads(line)
            if "made" in message:
                with self._lock:
                    self._progress(message["made"], message["rejected"])
            elif "error" in message:
                if kind := _ERRORS.get(message["kind"]):
                    raise kind(message["error"])
                raise ShardError(
                    f"the worker that made {spec.name} failed ({message['error']}; its traceback "
                    "is above); finished shards are kept: the same command resumes"
                )
            else:
                return
        code = worker.wait()
        cause = f"signal {-code}" if code < 0 else f"exit status {code}"
        advice = "the same command resumes"
        if out_of_memory_kills() > self._kills:
            cause += ": the kernel killed it because memory ran out"
            advice = "run the same command again with fewer --workers"
        raise ShardError(
            f"the worker that made {spec.name} died ({cause}); finished shards are kept: {advice}"
        )
