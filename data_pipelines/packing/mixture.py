"""Mixtures: one sequence of rows out of several plans, each with its share."""

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

from data_pipelines.packing.base import EpochPlan, Plan, Rows

_VERSION = 1

# Shares are multiples of one part in at most this many rows.
_LONGEST_PERIOD = 2**16


@dataclasses.dataclass(frozen=True, eq=False)
class _Period:
    """A cycle of rows that holds every source in exact proportion.

    Attributes:
      source: int64 [D], whose row comes at each place of the cycle.
      rank: int64 [D], how many rows of the same source come before it in the cycle.
      parts: int64 [sources], rows of each source in the cycle.
    """

    source: np.ndarray
    rank: np.ndarray
    parts: np.ndarray


class Mixture(Plan):
    """Rows of several plans interleaved as evenly as can be, without chance.

    After any number n of rows since the weights last changed, the rows that came from a source
    differ from n times its share by less than 1. Each source runs through epochs of its own.
    The documents of all sources are numbered in one sequence: those of the second source follow
    those of the first, and so on.

    Attributes:
      plans: the plan of each source.
      shares: for each stage of the schedule the exact shares of the sources, which sum to 1.
    """

    def __init__(self, plans: Sequence[EpochPlan], schedule: Sequence[tuple[int, Sequence[float]]]):
        """Mixes plans.

        Args:
          plans: at least one, all of the same sequence length.
          schedule: (first row, weights) of each stage, the first of them at row 0. Weights are
            relative shares of rows (and so of places), one for each plan, not negative, not all
            zero. Decimal fractions are taken as written: 0.1 is one tenth. Shares that have no
            common denominator up to 65,536 are rounded to it.

        Raises:
          ValueError: plans or schedule are not as described, or a weight would be rounded to 0.
        """
        self.plans = tuple(plans)
        if not self.plans:
            raise ValueError("A mixture needs at least one plan.")
        row_lengths = sorted({plan.seq_len for plan in self.plans})
        if len(row_lengths) > 1:
            raise ValueError(
                f"The plans of a mixture must have equal row lengths, but they have {row_lengths}."
            )
        self.seq_len = row_lengths[0]
        self._starts = [int(start) for start, _ in schedule]
        if self._starts[:1] != [0] or self._starts != sorted(set(self._starts)):
            raise ValueError(
                f"The stages of a mixture must begin at row 0 and then at ever later rows, but "
                f"they begin at {self._starts}."
            )
        parts = [_parts(weights, len(self.plans)) for _, weights in schedule]
        self.shares = tuple(
            tuple(fractions.Fraction(part, sum(stage)) for part in stage) for stage in parts
        )
        self._periods = [_period(stage) for stage in parts]
        # How many rows each source has given when each stage begins.
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
        stages = [
            f"from row {start:,} on " + " : ".join(f"{float(share):.4g}" for share in shares)
            for start, shares in zip(self._starts, self.shares, strict=True)
        ]
        sources = [f"({number}) {plan}" for number, plan in enumerate(self.plans, 1)]
        return f"a mixture, {', '.join(stages)}, of " + "; ".join(sources)

    def counts(self, row: int) -> np.ndarray:
        """How many of the rows before this one came from each source, int64 [sources]."""
        return self._counts_in_stage(bisect.bisect_right(self._starts, row) - 1, row)

    def _counts_in_stage(self, stage: int, row: int) -> np.ndarray:
        """Rows of each source before a row of this stage, or before the stage that follows."""
        period = self._periods[stage]
        cycles, place = divmod(row - self._starts[stage], period.source.size)
        begun = np.bincount(period.source[:place], minlength=len(self.plans))
        return self._before[stage] + cycles * period.parts + begun

    def epochs(self, row: int) -> tuple[float, ...]:
        counts = self.counts(row).tolist()
        return tuple(plan.epochs(n)[0] for plan, n in zip(self.plans, counts, strict=True))

    def rows(self, indices: ArrayLike) -> Rows:
        numbers = np.asarray(indices, np.int64).reshape(-1)
        if numbers.size and numbers.min() < 0:
            raise IndexError(f"Row {numbers.min()} was asked for; rows are numbered from 0.")
        source, own_number = self._locate(numbers)
        places, parts = [], []
        for one in np.unique(source).tolist():
            asked = np.flatnonzero(source == one)
            rows = self.plans[one].rows(own_number[asked])
            places.append(np.repeat(asked, np.diff(rows.offsets)))
            parts.append(rows.pieces + np.array([self._first_document[one], 0, 0]))
        if not parts:
            return Rows(np.zeros((0, 3), np.int64), np.zeros(1, np.int64))
        place = np.concatenate(places)
        order = np.argsort(place, kind="stable")
        sizes = np.bincount(place, minlength=numbers.size)
        return Rows(np.concatenate(parts)[order], np.concatenate([[0], np.cumsum(sizes)]))

    def _locate(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers of the mixture -> (source, row number in that source), both int64."""
        stage_of_row = np.searchsorted(self._starts, numbers, side="right") - 1
        source = np.zeros_like(numbers)
        own_number = np.zeros_like(numbers)
        for stage in np.unique(stage_of_row).tolist():
            here = stage_of_row == stage
            period = self._periods[stage]
            cycle, place = np.divmod(numbers[here] - self._starts[stage], period.source.size)
            source[here] = chosen = period.source[place]
            before = self._before[stage][chosen] + cycle * period.parts[chosen]
            own_number[here] = before + period.rank[place]
        return source, own_number


def _parts(weights: Sequence[float], sources: int) -> list[int]:
    """Weights -> the rows of each source in the shortest cycle of exact or rounded shares."""
    if len(weights) != sources:
        raise ValueError(
            f"A mixture of {sources} plans needs {sources} weights, not {len(weights)}: "
            f"{list(weights)}."
        )
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
        raise ValueError(
            f"The weights of a mixture must not be negative and not all 0: {list(weights)}."
        )
    # The shortest decimal that stands for the number, so that 0.1 is a tenth.
    exact = [fractions.Fraction(str(weight)) for weight in weights]
    total = sum(exact)
    shares = [weight / total for weight in exact]
    period = math.lcm(*(share.denominator for share in shares))
    if period <= _LONGEST_PERIOD:
        return [int(share * period) for share in shares]
    parts = [int(share * _LONGEST_PERIOD) for share in shares]
    by_remainder = sorted(
        range(sources), key=lambda source: parts[source] - shares[source] * _LONGEST_PERIOD
    )
    for source in by_remainder[: _LONGEST_PERIOD - sum(parts)]:
        parts[source] += 1
    lost = [source for source in range(sources) if shares[source] and not parts[source]]
    if lost:
        raise ValueError(
            f"The weight of plan {lost[0]} is less than one row in {_LONGEST_PERIOD:,}: "
            f"{list(weights)}. Leave it out or raise its weight."
        )
    return parts


def _period(parts: list[int]) -> _Period:
    """Orders a cycle so that no source is ever a whole row ahead or behind.

    Tijdeman, "The chairman assignment problem", 1980: of the sources that are due, the one whose
    limit comes first gives the next row. In integers: share = part / size.
    """
    part = np.array(parts, np.int64)
    size = int(part.sum())
    # A source may be ahead or behind by 1 - 1 / (2n - 2) at most, n > 1 sources.
    unit = max(2 * len(parts) - 2, 1)
    given = np.zeros_like(part)
    source = np.zeros(size, np.int64)
    rank = np.zeros(size, np.int64)
    for place in range(size):
        behind = unit * (part * (place + 1) - given * size)
        due = (part > 0) & ((behind >= size) | (len(parts) == 1))
        limit = np.where(due, (unit * size - size - behind) / np.maximum(part, 1), np.inf)
        chosen = int(limit.argmin())
        source[place], rank[place] = chosen, given[chosen]
        given[chosen] += 1
    return _Period(source, rank, part)
