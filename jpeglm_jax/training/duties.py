"""What a run does every so many steps, besides steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Duty(NamedTuple):
    """One kind of work.

    Attributes:
      name: in checkpoints, and for the watchdog.
      every: steps between two times; 0: never. It is also due after the last step.
      work: called with the step and the state.
    """

    name: str
    every: int
    work: Callable[[int, Any], None]


class Duties:
    """Work that is due every so many steps, in a fixed order.

    A process that is killed between two duties of a step must not lose the second one. So a
    checkpoint stores `unfinished`, and the process that resumes performs those first.

    Args:
      duties: in the order in which they are performed.
      steps: length of the run.
      check: called with the name of a duty before it is performed; may raise.
    """

    def __init__(self, duties: Sequence[Duty], steps: int, check: Callable[[str], None]):
        self._work = {duty.name: duty.work for duty in duties}
        self._every = {duty.name: duty.every for duty in duties if duty.every}
        self._steps, self._check = steps, check
        self._queue: list[str] = []

    @property
    def unfinished(self) -> list[str]:
        """Names of the duties of this step that have not been performed, in order."""
        return list(self._queue)

    def due(self, step: int) -> list[str]:
        """Names of the duties that are due after a step, in order."""
        last = step == self._steps
        return [name for name, every in self._every.items() if last or step % every == 0]

    def perform(self, names: Sequence[str], step: int, state: Any) -> None:
        """Performs duties one after the other. One that raises stays unfinished, as do the rest."""
        self._queue = list(names)
        while self._queue:
            self._check(self._queue[0])
            self._work[self._queue[0]](step, state)
            self._queue.pop(0)
