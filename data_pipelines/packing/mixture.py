"""Mixtures: interleaves the rows of several plans in given shares."""

from __future__ import annotations

import bisect
import dataclasses
import fractions
import hashlib
import json
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from data_pipelines.packing.plan import EpochPlan, Plan, Rows

_VERSION = 1

# Maximum number of rows of a cycle; shares are rounded to multiples of its inverse.
_MAX_PERIOD = 2**16


@dataclasses.dataclass(frozen=True, eq=False)
class _Period:
    """A cycle of rows with every source in its exact share.

    Attributes:
      source: int64 [D], the source of each row of the cycle.
      rank: int64 [D], number of earlier rows of the same source in the cycle.
      parts: int64 [sources], rows of each source in the cycle.
    """

    source: np.ndarray
    rank: np.ndarray
    parts: np.ndarray


class Mixture(Plan):
    """Rows of several plans, interleaved evenly and deterministically.

    After n rows of a stage, the number of rows of each source differs from n times its share by
    less than 1. Each source has its own epochs. The documents of all sources are numbered
    consecutively: those of the second source follow those of the first, and so on.

    Attributes:
      plans: the plan of each source.
      shares: for each stage of the schedule, the exact shares of the sources; they sum to 1.
    """

    def __init__(self, plans: Sequence[EpochPlan], schedule: Sequence[tuple[int, Sequence[float]]]):
        """Mixes plans.

        Args:
          plans: at least one, all of the same sequence length.
          schedule: (first row, weights) of each stage; the first stage starts at row 0. Weights
            are relative shares of rows (and thus of positions), one for each plan, not negative,
            not all 0. Decimal fractions are exact: 0.1 is one tenth. Shares without a common
            denominator up to 65,536 are rounded.

        Raises:
          ValueError: plans or schedule are not as described, or a weight is rounded to 0.
        """
        self.plans = tuple(plans)
        if not self.plans:
            raise ValueError("A mixture needs at least one plan.")
        seq_lens = sorted({plan.seq_len for plan in self.plans})
        if len(seq_lens) > 1:
            raise ValueError(f"The plans of a mixture have seq_len {seq_lens}; expected one value.")
        self.seq_len = seq_lens[0]
        self._starts = [int(start) for start, _ in schedule]
        if self._starts[:1] != [0] or self._starts != sorted(set(self._starts)):
            raise ValueError(
                f"The stages of a mixture start at rows {self._starts}; expected row 0 and then "
                "increasing rows."
            )
        parts = [_parts(weights, len(self.plans)) for _, weights in schedule]
        self.shares = tuple(
            tuple(fractions.Fraction(part, sum(stage)) for part in stage) for stage in parts
        )
        self._periods = [_period(stage) for stage in parts]
        # Rows of each source before each stage.
        self._before = [np.zeros(len(self.plans), np.int64)]
        for stage, start in enumerate(self._starts[1:]):
            self._before.append(self._counts_in_stage(stage, start))
        sizes = [plan.lengths.size for plan in self.plans]
        self._first_document = np.cumsum([0, *sizes])[:-1]
        identity = [_VERSION, [plan.fingerprint for plan in self.plans], self._starts, parts]
        self.fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]

    @property
    def lengths(self) -> np.ndarray:
        return np.concatenate([plan.lengths for plan in self.plans])

    @property
    def max_documents(self) -> int:
        return max(plan.max_documents for plan in self.plans)

    def __str__(self) -> str:
        stages = []
        for start, shares in zip(self._starts, self.shares, strict=True):
            ratio = " : ".join(f"{float(share):.4g}" for share in shares)
            stages.append(f"shares {ratio} from row {start:,} on")
        sources = [f"({number}) {plan}" for number, plan in enumerate(self.plans, 1)]
        return f"a mixture, {', '.join(stages)}, of " + "; ".join(sources)

    def counts(self, row: int) -> np.ndarray:
        """Rows of each source before this row, int64 [sources]."""
        return self._counts_in_stage(bisect.bisect_right(self._starts, row) - 1, row)

    def _counts_in_stage(self, stage: int, row: int) -> np.ndarray:
        """Rows of each source before a row of this stage, or before the next stage."""
        period = self._periods[stage]
        cycles, offset = divmod(row - self._starts[stage], period.source.size)
        begun = np.bincount(period.source[:offset], minlength=len(self.plans))
        return self._before[stage] + cycles * period.parts + begun

    def epochs(self, row: int) -> tuple[float, ...]:
        counts = self.counts(row).tolist()
        return tuple(plan.epochs(n)[0] for plan, n in zip(self.plans, counts, strict=True))

    def rows(self, indices: ArrayLike) -> Rows:
        numbers = np.asarray(indices, np.int64).reshape(-1)
        if numbers.size and numbers.min() < 0:
            raise IndexError(f"There is no row {numbers.min()}; rows are numbered from 0.")
        source, own_number = self._locate(numbers)
        owners, parts = [], []
        for one in np.unique(source).tolist():
            which = np.flatnonzero(source == one)
            rows = self.plans[one].rows(own_number[which])
            owners.append(np.repeat(which, np.diff(rows.offsets)))
            parts.append(rows.pieces + np.array([self._first_document[one], 0, 0]))
        if not parts:
            return Rows(np.zeros((0, 3), np.int64), np.zeros(1, np.int64))
        owner = np.concatenate(owners)
        order = np.argsort(owner, kind="stable")
        sizes = np.bincount(owner, minlength=numbers.size)
        return Rows(np.concatenate(parts)[order], np.concatenate([[0], np.cumsum(sizes)]))

    def _locate(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Converts row indices of the mixture to (source, row index in it), both int64."""
        stage_of_row = np.searchsorted(self._starts, numbers, side="right") - 1
        source = np.zeros_like(numbers)
        own_number = np.zeros_like(numbers)
        for stage in np.unique(stage_of_row).tolist():
            here = stage_of_row == stage
            period = self._periods[stage]
            cycle, offset = np.divmod(numbers[here] - self._starts[stage], period.source.size)
            source[here] = chosen = period.source[offset]
            before = self._before[stage][chosen] + cycle * period.parts[chosen]
            own_number[here] = before + period.rank[offset]
        return source, own_number


def _parts(weights: Sequence[float], sources: int) -> list[int]:
    """Rows of each source in the shortest cycle with the exact (or rounded) shares."""
    if len(weights) != sources:
        raise ValueError(
            f"The mixture has {len(weights)} weights, {list(weights)}; expected one for each of "
            f"its {sources} plans."
        )
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
        raise ValueError(
            f"The weights of the mixture are {list(weights)}; expected no negative one and not all "
            "0."
        )
    # The shortest decimal of the number, so that 0.1 is exactly one tenth.
    exact = [fractions.Fraction(str(weight)) for weight in weights]
    total = sum(exact)
    shares = [weight / total for weight in exact]
    period = math.lcm(*(share.denominator for share in shares))
    if period <= _MAX_PERIOD:
        return [int(share * period) for share in shares]
    parts = [int(share * _MAX_PERIOD) for share in shares]
    by_remainder = sorted(
        range(sources), key=lambda source: parts[source] - shares[source] * _MAX_PERIOD
    )
    for source in by_remainder[: _MAX_PERIOD - sum(parts)]:
        parts[source] += 1
    lost = [source for source in range(sources) if shares[source] and not parts[source]]
    if lost:
        raise ValueError(
            f"The weight of plan {lost[0]} is less than one row in {_MAX_PERIOD:,}: "
            f"{list(weights)}. Remove the plan or increase its weight."
        )
    return parts


def _period(parts: list[int]) -> _Period:
    """Orders a cycle so that no source is ever a whole row ahead or behind.

    Tijdeman, "The chairman assignment problem", 1980: of the sources that may be next, the one with
    the earliest deadline gives the next row. In integers: share = part / size.
    """
    part = np.array(parts, np.int64)
    size = int(part.sum())
    # A source may be ahead or behind by at most 1 - 1 / (2n - 2) rows, n > 1 sources.
    unit = max(2 * len(parts) - 2, 1)
    given = np.zeros_like(part)
    source = np.zeros(size, np.int64)
    rank = np.zeros(size, np.int64)
    for index in range(size):
        behind = unit * (part * (index + 1) - given * size)
        due = (part > 0) & ((behind >= size) | (len(parts) == 1))
        deadline = np.where(due, (unit * size - size - behind) / np.maximum(part, 1), np.inf)
        chosen = int(deadline.argmin())
        source[index], rank[index] = chosen, given[chosen]
        given[chosen] += 1
    return _Period(source, rank, part)
