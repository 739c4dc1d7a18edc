"""Checkpoints of a run: saved in the background by Orbax, restored onto any mesh.

Each holds the weights, the optimizer state, the moving average of the weights if there is one, and
`meta`, a JSON object: configuration, representation, data position, versions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib.metadata
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict

from data_pipelines import representations
from data_pipelines.representations.base import Representation
from data_pipelines.utils.files import WriteError
from jpeglm_jax.model.config import ModelConfig, model_config
from jpeglm_jax.model.identity import require_finite
from jpeglm_jax.model.spec import ModelSpec
from jpeglm_jax.model.trained import TrainedModel
from jpeglm_jax.parallel.sharding import inference_mesh
from jpeglm_jax.training.step import TrainState

PACKAGES = ("jpeglm-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "pillow")

# Weights are stored in chunks of at most this, so that a reader of a part of a parameter (another
# mesh, the conversion of a model larger than memory) does not read the rest.
CHUNK_BYTES = 1 << 26


# A disk is full, a quota or a limit on the size of files is reached.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class CheckpointError(ValueError):
    """A checkpoint that is missing, or does not belong to this run."""


class SaveError(RuntimeError):
    """A checkpoint or another file of a run could not be written."""


def no_room(error: BaseException | None) -> str:
    """The operating system's message for a full disk if that is the cause of `error`; else ""."""
    while error is not None:
        for number in _NO_ROOM:
            words = os.strerror(number)
            if getattr(error, "errno", None) == number or words in str(error):
                return words
        error = error.__cause__ or error.__context__
    return ""


def folder(workdir: epath.PathLike) -> epath.Path:
    """Where a run keeps its checkpoints."""
    return epath.Path(workdir) / "checkpoints"


def orbax_path(workdir: epath.PathLike) -> epath.Path:
    """`folder` as Orbax wants it: absolute, unless it has a scheme such as gs://."""
    path = folder(workdir)
    return path if "://" in str(path) else path.resolve()


def versions() -> dict[str, str]:
    """Versions of the installed packages that decide the numbers of a run."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def shape_of(config: ConfigDict) -> dict[str, Any]:
    """The part of `config.model` that decides what the weights are, not how they are computed."""
    computing = ("dtype", "remat", "attention", "max_documents", "scan_unroll")
    return {name: value for name, value in config.model.items() if name not in computing}


def refuse_difference(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], what: str, holder: str = "the checkpoint"
) -> None:
    """Raises CheckpointError naming every value that differs between this run and `holder`'s."""
    names = sorted(ours.keys() | theirs.keys())
    wrong = [
        f"{name} is {ours.get(name)!r} here and {theirs.get(name)!r} there"
        for name in names
        if ours.get(name) != theirs.get(name)
    ]
    if wrong:
        raise CheckpointError(f"{holder} has another {what}: " + "; ".join(wrong))


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """No. Its question, numbered by steps, would mix with those of `Interruption`."""
        del step
        return False


class Checkpoints:
    """The checkpoints of a run.

    What a save that was cut off has left is removed when a writing run begins.

    Args:
      workdir: the run's folder.
      config: `config.checkpoint`: `keep` newest ones stay, and those whose step `keep_every`
        divides (0: none besides).
    """

    def __init__(self, workdir: epath.PathLike, config: ConfigDict | None = None):
        keep, keep_every = (config.keep, config.keep_every) if config else (None, 0)
        self._folder = folder(workdir)
        self._saving: int | None = None
        self._manager = _Manager(
            orbax_path(workdir),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                keep_period=keep_every or None,
                create=config is not None,
                cleanup_tmp_directories=config is not None,
                enable_async_checkpointing=True,
            ),
        )

    def latest(self) -> int | None:
        """The step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: TrainState, meta: dict[str, Any]) -> None:
        """Begins to save; returns as soon as the state may be changed. Saves no step twice.

        Raises:
          SaveError: this save could not begin, or the one before it has failed.
        """
        if step == self._saving:
            return
        items: dict[str, Any] = {
            "params": _in_chunks(state.params),
            "opt_state": ocp.args.StandardSave(state.opt_state),
            "meta": ocp.args.JsonSave(meta),
        }
        if state.ema is not None:
            items["ema"] = _in_chunks(state.ema)
        self.wait()
        self._saving = step
        try:
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        except Exception as error:
            raise self.failure(error) from error

    def check(self) -> None:
        """Raises SaveError if the last save has failed. Waits for nothing."""
        if not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Waits for the save under way. Raises SaveError if it failed."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise self.failure(error) from error

    def failure(self, error: Exception) -> SaveError:
        """One sentence on a failed write: what failed, and what is left."""
        reason = no_room(error)
        saving = "" if self._saving is None else f"the checkpoint of step {self._saving} or "
        self._manager.reload()
        latest = self.latest()
        return SaveError(
            f"{saving}what else a run writes to {self._folder.parent} could not be written: "
            + (reason or f"{type(error).__name__}: {error}")
            + (
                f". The newest complete checkpoint is of step {latest}"
                if latest is not None
                else ". There is no complete checkpoint yet"
            )
            + (". Make room; the" if reason else ". The")
            + " same command resumes from there"
        )

    def meta(self, step: int | None = None) -> dict[str, Any]:
        """The page of JSON of a checkpoint, by default of the newest."""
        step = self._existing(step)
        found = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
        return found["meta"]

    def restore(self, step: int, shapes: TrainState, where: TrainState) -> TrainState:
        """The whole state, laid out as `where` (a tree of shardings) says."""
        items = {"params": (shapes.params, where.params)}
        items["opt_state"] = (shapes.opt_state, where.opt_state)
        if shapes.ema is not None:
            items["ema"] = (shapes.ema, where.ema)
        found = self._restore(step, items)
        finite = jax.device_put(True, where.finite)
        return TrainState(found["params"], found["opt_state"], found.get("ema"), finite)

    def restore_params(
        self, shapes: Any, where: Any, *, ema: bool = False, step: int | None = None
    ) -> Any:
        """The weights alone, or their average, onto any mesh."""
        name = "ema" if ema else "params"
        return self._restore(self._existing(step), {name: (shapes, where)})[name]

    def _restore(self, step: int, items: dict[str, tuple[Any, Any]]) -> Any:
        targets = {name: _place(shapes, where) for name, (shapes, where) in items.items()}
        args = {name: ocp.args.StandardRestore(target) for name, target in targets.items()}
        return self._manager.restore(step, args=ocp.args.Composite(**args))

    def _existing(self, step: int | None) -> int:
        found = self._manager.all_steps()
        if not found:
            raise CheckpointError(
                f"there is no checkpoint in {self._folder}; expected the folder of a run that has "
                "saved at least once"
            )
        if step is not None and step not in found:
            raise CheckpointError(
                f"there is no checkpoint of step {step} in {self._folder}; there are: "
                + ", ".join(map(str, sorted(found)))
            )
        return max(found) if step is None else step

    @contextlib.contextmanager
    def naming_a_full_disk(self) -> Iterator[None]:
        """Turns an error of whatever else a run writes to a full disk into a SaveError."""
        try:
            yield
        except (OSError, WriteError) as error:
            if no_room(error):
                raise self.failure(error) from error
            raise

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits for the save under way. Raises SaveError if it failed."""
        try:
            self.wait()
        finally:
            with contextlib.suppress(Exception):  # it waits too, and raises the same once more
                self._manager.close()


@dataclasses.dataclass(frozen=True)
class Run:
    """The metadata of a checkpoint, without its weights.

    Attributes:
      config: the run's configuration.
      representation: what the tokens mean.
      step: of the checkpoint.
      meta: its whole page of JSON.
    """

    config: ConfigDict
    representation: Representation
    step: int
    meta: dict[str, Any]

    @property
    def averaged(self) -> bool:
        """Whether the weights to use are their moving average."""
        return bool(self.config.optimizer.ema)

    def model(self, platform: str) -> ModelConfig:
        """The shape of the model; `platform` is "cpu", "gpu" or "tpu"."""
        return model_config(self.config.model, self.representation.vocab_size, platform)


def describe(workdir: epath.PathLike, step: int | None = None) -> Run:
    """Reads the metadata of a run's checkpoint, and none of its weights.

    Args:
      workdir: the run's folder.
      step: which checkpoint; default the newest.

    Raises:
      CheckpointError: there is no such run or checkpoint, or its parts do not belong together.
    """
    workdir = epath.Path(workdir)
    if not folder(workdir).is_dir():
        raise CheckpointError(
            f"{workdir} has no folder checkpoints; expected the workdir of a training run"
        )
    with Checkpoints(workdir) as checkpoints:
        meta = checkpoints.meta(step)
    representation = representations.load(workdir)
    refuse_difference(representation.to_config(), meta["representation"], "representation")
    return Run(ConfigDict(meta["config"]), representation, meta["step"], meta)


def load(workdir: epath.PathLike, step: int | None = None) -> TrainedModel:
    """Loads the weights of a run for use; any devices will do, none of the run's own need be.

    Args:
      workdir: the run's folder.
      step: which checkpoint; default the newest.

    Raises:
      CheckpointError: there is no such run or checkpoint, or its parts do not belong together.
      NotFiniteError: weights are NaN or infinite; names them.
    """
    run = describe(workdir, step)
    representation = run.representation
    spec = ModelSpec(run.model(jax.default_backend()))
    model = spec.config
    mesh = inference_mesh(4 * spec.num_parameters, (model.heads, model.kv_heads, model.ffn))
    with Checkpoints(workdir) as checkpoints:
        params = checkpoints.restore_params(
            spec.abstract_params, spec.param_shardings(mesh), ema=run.averaged, step=run.step
        )
    require_finite(params, f"step {run.step} of {workdir}")
    return TrainedModel(
        run.config,
        representation,
        spec,
        mesh,
        params,
        run.step,
        longest_document=run.meta["data"].get("longest_document"),
        workdir=os.fspath(workdir),
    )


def _in_chunks(weights: Any) -> ocp.args.StandardSave:
    """Saves arrays in chunks of bounded size, so that a part of one is read without the rest."""
    options = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), weights)
    return ocp.args.StandardSave(weights, save_args=options)


def _place(shapes: Any, where: Any) -> Any:
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, where
    )


def quiet_libraries() -> None:
    """Shows only warnings of Orbax and JAX, and no stack trace of an error that is raised too."""
    for name in (None, "absl", "jax"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("absl").addFilter(_raises_nothing)
    sys.unraisablehook = _shows_no_late_writes


def _raises_nothing(record: logging.LogRecord) -> bool:
    return not record.exc_info


def _shows_no_late_writes(unraisable: Any) -> None:
    """Hides the stack traces of TensorStore's other writes, which end after a failed save."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)
