"""Plans of rows: every document once, little padding, the same on every platform."""

import collections
import functools
import hashlib
import itertools

import numpy as np
import pytest

from data_pipelines.packing import bins
from data_pipelines.packing.mixture import Mixture
from data_pipelines.packing.permutation import hash64, permute, uniform
from data_pipelines.packing.plan import EpochPlan, Rows
from data_pipelines.packing.planner import MODES, make_plan

PAPER_ROW = 12_288

GOLDEN_HASH = [7702586659592502839]
GOLDEN_PERMUTATION = [946, 722, 218, 389, 427, 460, 856, 712]
GOLDEN_PLANS = {  # mode: (fingerprint, hash of the first 1,000 rows)
    "pack": ("4f5001f965d2e3a2", "22febd43c50e79ee"),
    "concat": ("54d19045df5cc82f", "2de7e88f820d9471"),
}


def paper_lengths(documents: int, seed: int = 0) -> np.ndarray:
    """Positions of documents of the paper's lengths: log-normal, median 4,500, sigma 0.45."""
    normal = np.random.default_rng(seed).standard_normal(documents)
    return np.rint(4500 * np.exp(0.45 * normal)).astype(np.int64) + 1


@functools.cache
def paper_plan(documents: int) -> EpochPlan:
    return make_plan(paper_lengths(documents), seq_len=PAPER_ROW, seed=3)


def epoch_of(plan: EpochPlan, epoch: int) -> Rows:
    first = epoch * plan.rows_per_epoch
    return plan.rows(np.arange(first, first + plan.rows_per_epoch))


def row_totals(rows: Rows) -> np.ndarray:
    return np.array([row[:, 2].sum() for row in rows])


@pytest.mark.parametrize("mode", ["pack", "concat"])
@pytest.mark.parametrize("shortest", [1, 40, 700])
def test_no_row_holds_more_documents_than_the_plan_states(mode, shortest):
    lengths = np.random.default_rng(0).integers(shortest, 1000, 300)
    plan = make_plan(lengths, seq_len=1024, mode=mode, seed=3)
    largest = max(len(row) for epoch in range(3) for row in epoch_of(plan, epoch))
    assert largest <= plan.max_documents
    if mode == "pack":
        assert largest == plan.max_documents
    assert Mixture([plan, plan], [(0, (1, 1))]).max_documents == plan.max_documents


# Permutations


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 1000, 65_537])
def test_a_permutation_holds_every_number_once(size):
    for key in range(3):
        permuted = permute(np.arange(size), size, hash64(key))
        assert np.array_equal(np.sort(permuted), np.arange(size))


@pytest.mark.parametrize("size", [3, 4, 5])
def test_all_permutations_of_a_few_are_about_equally_likely(size):
    keys = hash64(np.arange(24_000))[:, None]
    tables = permute(np.arange(size)[None], size, keys)
    counts = collections.Counter(map(tuple, tables.tolist()))
    expected = len(keys) / len(list(itertools.permutations(range(size))))
    chi_squared = sum((count - expected) ** 2 / expected for count in counts.values())
    degrees = len(keys) / expected - 1
    assert len(counts) == degrees + 1
    # Mean d and standard deviation sqrt(2 d): a fair table is beyond this once in 100,000.
    assert chi_squared < degrees + 5 * np.sqrt(2 * degrees)


def test_a_large_permutation_has_no_visible_order():
    size = 200_003
    permuted = permute(np.arange(size), size, hash64(7))
    assert abs(np.corrcoef(np.arange(size), permuted)[0, 1]) < 5 / np.sqrt(size)
    steps = np.diff(permuted)
    # A linear congruential shuffle has a handful of distinct steps.
    assert len(np.unique(steps)) > 0.6 * size
    assert abs(np.corrcoef(steps[:-1], steps[1:])[0, 1] + 0.5) < 0.02  # as for independent samples


def test_sizes_and_keys_may_differ_for_each_index():
    sizes = np.array([1, 7, 1000, 123_456])
    keys = hash64(5, np.arange(4))
    together = permute(sizes - 1, sizes, keys)
    alone = [permute(n - 1, n, key)[0] for n, key in zip(sizes, keys, strict=True)]
    assert together.tolist() == alone


def test_hashes_and_permutations_equal_the_golden_ones():
    """If this fails, plans change under running jobs.

    Change it only together with `plan.VERSION`, which changes every plan's fingerprint.
    The values were recorded when the functions were written.
    """
    assert hash64(1, 2, 3).tolist() == GOLDEN_HASH
    assert permute(np.arange(8), 1000, hash64(0)).tolist() == GOLDEN_PERMUTATION


def test_uniform_numbers_are_uniform():
    values = uniform(3, np.arange(50_000))
    assert values.min() >= 0 and values.max() < 1
    assert abs(values.mean() - 0.5) < 5 / np.sqrt(12 * values.size)


# Bins


@pytest.mark.parametrize("documents", [1, 2, 10, 300, 5000])
def test_bins_use_every_length_as_often_as_it_occurs(documents):
    lengths = np.minimum(paper_lengths(documents), PAPER_ROW)
    histogram = np.bincount(lengths, minlength=PAPER_ROW + 1)
    templates = bins.pack_histogram(histogram, PAPER_ROW)
    repeats = np.repeat(templates.copies, templates.sizes)
    packed = np.bincount(templates.lengths, weights=repeats, minlength=PAPER_ROW + 1)
    assert np.array_equal(packed, histogram)
    ends = np.cumsum(templates.sizes)
    used = np.add.reduceat(templates.lengths, ends - templates.sizes)
    assert used.max() <= PAPER_ROW


@pytest.mark.parametrize(
    ("lengths", "rows"),
    [
        ([6, 4, 6, 4], 2),  # pairs
        ([5, 3, 2, 4, 4, 2], 2),  # triples
        ([7, 6, 5, 5, 4, 3], 3),
        ([4, 4, 4, 2, 2, 2, 2], 2),  # best fit decreasing needs three rows: 4 + 4 + 2 comes first
        ([1] * 25, 3),
        ([10] * 5, 5),
        ([6] * 5, 5),
    ],
)
def test_small_sets_are_packed_optimally(lengths, rows):
    assert bins.pack_histogram(np.bincount(lengths, minlength=11), 10).rows == rows


@pytest.mark.parametrize(
    ("documents", "min_fill"),
    [(1_000, 0.985), (10_000, 0.994), pytest.param(2_000_000, 0.9955, marks=pytest.mark.slow)],
)
def test_rows_of_the_papers_lengths_are_full(documents, min_fill):
    assert paper_plan(documents).stats.fill > min_fill


# Rows of whole documents


def test_every_document_is_in_one_row_of_every_epoch():
    lengths = paper_lengths(3000)
    plan = make_plan(lengths, seq_len=PAPER_ROW, seed=3)
    fitting = np.flatnonzero(lengths <= PAPER_ROW)
    assert plan.stats.dropped == len(lengths) - len(fitting) > 0
    for epoch in range(3):
        rows = epoch_of(plan, epoch)
        assert np.array_equal(np.sort(rows.pieces[:, 0]), fitting)
        assert not rows.pieces[:, 1].any()
        assert np.array_equal(rows.pieces[:, 2], lengths[rows.pieces[:, 0]])
        assert row_totals(rows).max() <= PAPER_ROW
        assert row_totals(rows).sum() == plan.stats.positions


def test_documents_share_rows_with_others_in_each_epoch():
    # With fewer documents, fewer are interchangeable in tightly filled rows.
    equal = make_plan(np.full(500, 3000), seq_len=PAPER_ROW, seed=3)
    for plan, max_kept in ((paper_plan(1000), 0.65), (paper_plan(10_000), 0.35), (equal, 0.02)):
        first, second = epoch_of(plan, 0), epoch_of(plan, 1)
        assert np.mean(first.pieces[:100, 0] == second.pieces[:100, 0]) < 0.1
        company = [
            {frozenset(row[:, 0].tolist()) for row in rows if len(row) > 1}
            for rows in (first, second)
        ]
        assert len(company[0] & company[1]) < max_kept * len(company[0])


def test_pieces_come_in_any_order_within_a_row():
    lengths = np.tile([2, 8], 500)
    plan = make_plan(lengths, seq_len=10)
    long_first = np.mean([row[0, 2] == 8 for row in epoch_of(plan, 0)])
    assert 0.4 < long_first < 0.6


def test_rows_have_random_access_independent_of_earlier_requests():
    for mode in MODES:
        plan = make_plan(paper_lengths(500), seq_len=PAPER_ROW, mode=mode)
        numbers = np.array([7, 3 * plan.rows_per_epoch + 5, 0, 7, plan.rows_per_epoch - 1])
        together = plan.rows(numbers)
        assert len(together) == len(numbers)
        for number, row in zip(numbers, together, strict=True):
            fresh = make_plan(paper_lengths(500), seq_len=PAPER_ROW, mode=mode)
            assert np.array_equal(row, fresh.row(int(number)))
        assert len(plan.rows([])) == 0


def test_documents_longer_than_a_row_are_dropped_or_cut_and_counted():
    lengths = [5, 30, 10, 11]
    dropped = make_plan(lengths, seq_len=10, too_long="drop")
    assert dropped.stats.dropped == 2 and "2 documents longer than a row" in str(dropped.stats)
    assert sorted(epoch_of(dropped, 0).pieces[:, 0].tolist()) == [0, 2]
    cut = make_plan(lengths, seq_len=10, too_long="cut")
    assert cut.stats.shortened == 2 and cut.stats.dropped == 0
    pieces = sorted(epoch_of(cut, 0).pieces.tolist())
    assert pieces == [[0, 0, 5], [1, 0, 10], [2, 0, 10], [3, 0, 10]]
    assert cut.stats.padding == 5


# Rows of documents end to end


@pytest.mark.parametrize("documents", [1, 31, 32, 33, 640, 3001])
def test_concatenation_covers_every_place_of_every_document_once(documents):
    lengths = paper_lengths(documents, seed=documents) // 50
    lengths[0] = 1000  # longer than several rows
    plan = make_plan(lengths, seq_len=300, mode="concat", seed=1)
    first_position = np.cumsum(lengths) - lengths
    for epoch in range(2):
        rows = epoch_of(plan, epoch)
        covered = np.zeros(lengths.sum(), int)
        for document, start, length in rows.pieces.tolist():
            assert length > 0 and start + length <= lengths[document]
            covered[
                first_position[document] + start : first_position[document] + start + length
            ] += 1
        assert np.all(covered == 1)
        totals = row_totals(rows)
        assert np.all(totals[:-1] == 300) and 0 < totals[-1] <= 300
    assert plan.stats.padding == 300 - totals[-1]


def test_concatenation_counts_split_documents():
    lengths = paper_lengths(2000) // 40
    plan = make_plan(lengths, seq_len=300, mode="concat")
    rows_of_document = collections.Counter(epoch_of(plan, 0).pieces[:, 0].tolist())
    split = sum(count > 1 for count in rows_of_document.values())
    assert plan.stats.split == split > 0
    assert f"{split:,} documents split" in str(plan.stats)


def test_concatenation_has_another_order_each_epoch():
    plan = make_plan(np.full(1000, 7), seq_len=70, mode="concat")
    first, second = (epoch_of(plan, epoch).pieces[:, 0] for epoch in range(2))
    assert np.mean(first == second) < 0.05


# What a plan is


def test_the_fingerprint_covers_everything_that_decides_the_rows():
    lengths = [5, 6, 7]
    plans = [
        make_plan(lengths, seq_len=10),
        make_plan(lengths, seq_len=11),
        make_plan(lengths, seq_len=10, seed=1),
        make_plan(lengths, seq_len=10, mode="concat"),
        make_plan(lengths, seq_len=10, too_long="cut"),
        make_plan([5, 7, 6], seq_len=10),
    ]
    assert len({plan.fingerprint for plan in plans}) == len(plans)
    again = make_plan(np.array(lengths, np.uint16), seq_len=10)
    assert again.fingerprint == plans[0].fingerprint


@pytest.mark.parametrize("mode", MODES)
def test_plans_equal_the_golden_ones(mode):
    """If this fails, a checkpoint's step means other rows than before.

    Increase `plan.VERSION` (or `bins.ALGORITHM_VERSION`), so that old checkpoints are refused
    by their fingerprint, and print the new values.
    """
    lengths = 20 + np.arange(200) ** 2 % 97
    plan = make_plan(lengths, seq_len=128, mode=mode, seed=11)
    pieces = np.ascontiguousarray(plan.rows(np.arange(1000)).pieces, "<i8")
    found = (plan.fingerprint, hashlib.sha256(pieces).hexdigest()[:16])
    assert found == GOLDEN_PLANS[mode]


@pytest.mark.parametrize(
    ("lengths", "options", "message"),
    [
        ([], {}, "no documents"),
        ([3, 0], {}, "between 0 and 3"),
        ([3.5], {}, "integers"),
        ([[3]], {}, "integers"),
        ([30, 40], {}, "All 2 documents .* seq_len 10"),
        ([3], {"mode": "best"}, "'best'; expected one of pack, concat"),
        ([3], {"too_long": "keep"}, "'keep'; expected one of drop, cut"),
        ([3], {"seq_len": 0}, "seq_len is 0"),
        ([3], {"seed": -1}, "seed is -1"),
    ],
)
def test_impossible_plans_are_refused(lengths, options, message):
    with pytest.raises(ValueError, match=message):
        make_plan(lengths, **{"seq_len": 10, **options})


def test_negative_rows_are_refused():
    with pytest.raises(IndexError, match="-1"):
        make_plan([3], seq_len=10).rows([0, -1])


# Mixtures


def three_plans() -> list[EpochPlan]:
    return [make_plan(np.full(n, 5 + n % 3), seq_len=10) for n in (90, 13, 500)]


@pytest.mark.parametrize(
    "weights", [(0.7, 0.2, 0.1), (1, 1, 1), (0.123, 0.5, 0.377), (1 / 3, 1 / 7, 0.1), (0, 5, 1)]
)
def test_rows_of_each_source_differ_from_its_share_by_less_than_one(weights):
    mixture = Mixture(three_plans(), [(0, weights)])
    rows = mixture.rows(np.arange(20_000))
    source = np.searchsorted([90, 103], rows.pieces[rows.offsets[:-1], 0], side="right")
    counts = np.cumsum(np.eye(3)[source], axis=0)
    expected = np.arange(1, len(counts) + 1)[:, None] * np.array(weights) / sum(weights)
    # Shares without a small common denominator are rounded: by 1 in 131,072 at most.
    assert np.abs(counts - expected).max() < 1 + len(counts) / 2**17
    assert np.array_equal(mixture.counts(len(counts)), counts[-1])


def test_each_source_of_a_mixture_has_its_own_epochs():
    plans = three_plans()
    mixture = Mixture(plans, [(0, (2, 1, 1)), (1001, (1, 5, 4))])
    rows = list(mixture.rows(np.arange(3000)))
    for first, plan in zip((0, 90, 103), plans, strict=True):
        own = [row for row in rows if first <= row[0, 0] < first + len(plan.lengths)]
        expected = plan.rows(np.arange(len(own)))
        assert all(
            np.array_equal(row - [first, 0, 0], other)
            for row, other in zip(own, expected, strict=True)
        )
    assert mixture.epochs(3000)[1] > 20 > mixture.epochs(3000)[2]


def test_weights_may_change_at_a_row():
    mixture = Mixture(three_plans(), [(0, (1, 0, 0)), (77, (0, 1, 3))])
    assert mixture.counts(77).tolist() == [77, 0, 0]
    assert mixture.counts(77 + 400).tolist() == [77, 100, 300]
    assert mixture.row(76)[0, 0] < 90 <= mixture.row(77)[0, 0]


def test_different_mixtures_have_different_fingerprints():
    plans = three_plans()
    schedules = [
        [(0, (1, 2, 3))],
        [(0, (1, 2, 4))],
        [(0, (1, 2, 3)), (10, (1, 1, 1))],
        [(0, (1, 2, 3)), (11, (1, 1, 1))],
    ]
    mixtures = [Mixture(plans, schedule) for schedule in schedules]
    mixtures.append(Mixture(plans[::-1], schedules[0]))
    assert len({mixture.fingerprint for mixture in mixtures}) == len(mixtures)
    equal = Mixture(plans, [(0, (0.1, 0.2, 0.3))])
    assert equal.fingerprint == mixtures[0].fingerprint


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ([], r"rows \[\]"),
        ([(5, (1, 1, 1))], r"rows \[5\]"),
        ([(0, (1, 1, 1)), (0, (1, 1, 1))], r"rows \[0, 0\]"),
        ([(0, (1, 1))], r"2 weights.* 3 plans"),
        ([(0, (1, -1, 1))], "negative"),
        ([(0, (0, 0, 0))], "not all 0"),
        ([(0, (1, float("nan"), 1))], "nan"),
        ([(0, (1, 1e-9, 1))], "plan 1 .*65,536"),
    ],
)
def test_impossible_mixtures_are_refused(schedule, message):
    with pytest.raises(ValueError, match=message):
        Mixture(three_plans(), schedule)


def test_rows_of_unequal_length_do_not_mix():
    plans = [make_plan([3], seq_len=10), make_plan([3], seq_len=12)]
    with pytest.raises(ValueError, match=r"\[10, 12\]"):
        Mixture(plans, [(0, (1, 1))])
