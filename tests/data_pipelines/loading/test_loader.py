"""Batches are a pure function of the step, for any number of readers."""

import collections
import dataclasses
import pathlib
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
from absl import flags
from PIL import Image

from data_pipelines.loading.loader import Loader
from data_pipelines.packing.mixture import Mixture
from data_pipelines.packing.planner import MODES, make_plan
from data_pipelines.prepare import prepare
from data_pipelines.representations.base import Representation, Validity
from data_pipelines.shards.reader import Shards

ROOT = pathlib.Path(__file__).parents[3]
ROW = 64
BOS, EOS, LABELS = 1000, 1001, 5


@dataclasses.dataclass(frozen=True)
class Numbers(Representation):
    """Documents are lists of numbers below 1000."""

    name: ClassVar[str] = "numbers"
    num_labels: int = LABELS
    num_codes: int = BOS

    def encode(self, media):
        return np.asarray(media, np.uint16)

    def decode(self, tokens):
        return tokens.tolist()

    def prompt(self, tokens, ratio):
        return tokens[: int(ratio * len(tokens))]

    def validate(self, tokens):
        return Validity(True, 1, 1)

    def to_config(self):
        return {"name": self.name, "num_labels": self.num_labels}


class Memory:
    """Documents in memory, with the interface of `Shards`."""

    def __init__(self, count: int, seed: int = 0, longest: int = 50, num_labels: int = LABELS):
        rng = np.random.default_rng(seed)
        self.tokens = [
            rng.integers(0, 1000, n).astype(np.uint16) for n in rng.integers(5, longest, count)
        ]
        for original in range(count // 4):  # a quarter has a duplicate
            self.tokens[count - 1 - original] = self.tokens[original]
        self.lengths = np.array([len(tokens) for tokens in self.tokens], np.uint32)
        self.codec_bytes = 3 * self.lengths + 1
        self.labels = rng.integers(-1, LABELS, count).astype(np.int32)
        self.representation = Numbers(num_labels)
        self.data_hash = f"{seed}/{count}/{longest}"

    def read(self, documents):
        return [self.tokens[document] for document in documents]


def loader(
    documents=None, *, mode="pack", seq_len=ROW, plan_seed=0, batch_size=8, **options
) -> Loader:
    documents = [Memory(200)] if documents is None else documents
    lengths = np.concatenate([part.lengths for part in documents]).astype(np.int64) + 1
    plan = make_plan(lengths, seq_len=seq_len, mode=mode, seed=plan_seed)
    return Loader(documents, plan, batch_size=batch_size, **options)


def first(batches, count: int) -> list[dict[str, Any]]:
    with batches:
        return [next(batches) for _ in range(count)]


def assert_equal(some, others) -> None:
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].dtype == other[name].dtype
            assert one[name].tobytes() == other[name].tobytes(), name


def joined(parts) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def pieces_of(batch):
    """(inputs, targets) of each piece of a batch, row by row."""
    for row in range(len(batch["tokens"])):
        segments = batch["segments"][row]
        for segment in range(1, segments.max() + 1):
            inside = segments == segment
            yield batch["tokens"][row][inside], batch["targets"][row][inside]


def contents(sources) -> collections.Counter:
    """How often each document occurs, by its tokens."""
    return collections.Counter(
        tuple(tokens.tolist()) for source in sources for tokens in source.tokens
    )


def contents_of_rows(rows) -> collections.Counter:
    """The same for rows, including documents that continue in the next row."""
    targets = rows["targets"][rows["weights"] > 0]
    ends = np.flatnonzero(targets == EOS) + 1
    assert ends[-1] == len(targets)
    return collections.Counter(
        tuple(document[:-1].tolist()) for document in np.split(targets, ends[:-1])
    )


# What a batch holds


def test_the_codec_bytes_of_a_document_are_spread_over_its_tokens():
    """So that their sum is exact for whole documents, and in proportion for pieces of one."""
    memory = Memory(60)
    whole = loader([memory]).eval_batches()
    assert sum(batch["codec_bytes"].sum() for batch in whole) == pytest.approx(
        memory.codec_bytes.sum(), rel=1e-6
    )
    pieces = loader([memory], mode="concat", seq_len=16).eval_batches()
    for batch in pieces:
        ends = batch["targets"] == EOS
        assert not batch["codec_bytes"][ends & (batch["weights"] > 0)].any()
        assert (batch["codec_bytes"][~ends] > 0).tolist() == (batch["weights"][~ends] > 0).tolist()


def test_arrays_have_the_shapes_and_types_that_they_should():
    (batch,) = first(loader().batches(), 1)
    assert {name: (part.shape, part.dtype.name) for name, part in batch.items()} == {
        "tokens": ((8, ROW), "int32"),
        "targets": ((8, ROW), "int32"),
        "segments": ((8, ROW), "int32"),
        "positions": ((8, ROW), "int32"),
        "weights": ((8, ROW), "float32"),
        "codec_bytes": ((8, ROW), "float32"),
    }


def test_a_packed_document_equals_the_same_document_alone():
    documents = Memory(200)
    packed = loader([documents])
    for step in range(12):
        batch = packed.read_rows(np.arange(8) + 8 * step)
        for row in range(8):
            at = 0
            pieces = packed.plan.row(8 * step + row)
            for segment, (document, _, length) in enumerate(pieces.tolist(), 1):
                part = slice(at, at + length)
                tokens, label = documents.tokens[document], documents.labels[document]
                start = BOS if label < 0 else 1002 + label
                assert batch["tokens"][row, part].tolist() == [start, *tokens]
                assert batch["targets"][row, part].tolist() == [*tokens, EOS]
                assert batch["positions"][row, part].tolist() == list(range(length))
                assert np.all(batch["segments"][row, part] == segment)
                at += length
            assert np.all(batch["weights"][row, :at] == 1)
            assert not any(part[row, at:].any() for part in batch.values())


def test_no_target_is_in_another_document():
    for mode in MODES:
        for batch in first(loader(mode=mode).batches(), 20):
            same = batch["segments"][:, 1:] == batch["segments"][:, :-1]
            inside = same & (batch["segments"][:, 1:] > 0)
            assert np.array_equal(batch["targets"][:, :-1][inside], batch["tokens"][:, 1:][inside])
            assert np.all(batch["positions"][:, 1:][inside] > 0)
            assert not batch["positions"][:, 1:][~inside].any()


def test_concatenated_pieces_join_to_whole_documents():
    documents = Memory(150, longest=200)
    concat = loader([documents], mode="concat")
    rows = concat.plan.rows_per_epoch
    batch = concat.read_rows(np.arange(rows))
    assert batch["weights"].sum() == (documents.lengths + 1).sum()
    assert batch["weights"][:-1].all()
    inputs, targets = collections.defaultdict(dict), collections.defaultdict(dict)
    order = concat.plan.rows(np.arange(rows)).pieces[:, :2].tolist()
    for (document, start), (piece, target) in zip(order, pieces_of(batch), strict=True):
        inputs[document][start], targets[document][start] = piece, target
    for document, tokens in enumerate(documents.tokens):
        label = documents.labels[document]
        whole = np.concatenate([inputs[document][start] for start in sorted(inputs[document])])
        assert whole.tolist() == [BOS if label < 0 else 1002 + label, *tokens]
        whole = np.concatenate([targets[document][start] for start in sorted(targets[document])])
        assert whole.tolist() == [*tokens, EOS]


def test_a_document_cut_to_a_row_has_no_end():
    documents = Memory(30, longest=150)
    plan = make_plan(documents.lengths + 1, seq_len=ROW, too_long="cut")
    cut = Loader(documents, plan, batch_size=4)
    batch = cut.read_rows(np.arange(plan.rows_per_epoch))
    order = plan.rows(np.arange(plan.rows_per_epoch)).pieces[:, 0].tolist()
    for document, (tokens, targets) in zip(order, pieces_of(batch), strict=True):
        if documents.lengths[document] >= ROW:
            assert tokens[1:].tolist() == documents.tokens[document][: ROW - 1].tolist()
            assert targets.tolist() == documents.tokens[document][:ROW].tolist()
        else:
            assert targets[-1] == EOS


def test_documents_begin_with_their_label_or_without_in_an_unconditional_model():
    (batch,) = first(loader([Memory(200, num_labels=0)]).batches(), 1)
    starts = batch["tokens"][(batch["positions"] == 0) & (batch["weights"] > 0)]
    assert np.all(starts == BOS)


def test_labels_are_dropped_as_often_as_asked_and_the_same_each_time():
    documents = Memory(400)
    documents.labels[:] = 3
    dropping = loader([documents], label_dropout=0.25, seed=1)
    batches = first(dropping.batches(), 200)
    starts = np.concatenate(
        [b["tokens"][(b["positions"] == 0) & (b["weights"] > 0)] for b in batches]
    )
    assert set(starts.tolist()) == {BOS, 1005}
    assert abs(np.mean(starts == BOS) - 0.25) < 5 * np.sqrt(0.25 * 0.75 / len(starts))
    assert_equal(
        batches[150:152], first(loader([documents], label_dropout=0.25, seed=1).batches(150), 2)
    )
    other = first(loader([documents], label_dropout=0.25, seed=2).batches(), 5)
    assert any(
        a["tokens"].tobytes() != b["tokens"].tobytes()
        for a, b in zip(batches[:5], other, strict=True)
    )
    for name in ("targets", "segments", "positions", "weights"):
        assert batches[0][name].tobytes() == other[0][name].tobytes()


# Every document once


@pytest.mark.parametrize("mode", MODES)
def test_every_document_is_read_once_per_epoch_across_batches(mode):
    """Two sources, documents that occur twice, and epochs that end inside a batch."""
    sources = [Memory(120, seed=1), Memory(75, seed=2)]
    both = loader(sources, mode=mode, batch_size=7)
    rows_per_epoch = both.plan.rows_per_epoch
    assert rows_per_epoch % 7
    rows = joined(first(both.batches(), -(-3 * rows_per_epoch // 7)))
    expected = contents(sources)
    assert max(expected.values()) > 1
    for epoch in range(3):
        here = slice(epoch * rows_per_epoch, (epoch + 1) * rows_per_epoch)
        assert contents_of_rows({name: part[here] for name, part in rows.items()}) == expected


def test_a_mixture_of_sources_is_read_like_any_plan():
    sources = [Memory(120, seed=1), Memory(75, seed=2)]
    plans = [make_plan(source.lengths + 1, seq_len=ROW) for source in sources]
    mixed = Loader(sources, Mixture(plans, [(0, (3, 1)), (40, (0, 1))]), batch_size=8)
    alone = [
        Loader(source, plan, batch_size=1) for source, plan in zip(sources, plans, strict=True)
    ]
    batches = first(mixed.batches(), 7)
    counts = mixed.plan.counts(56)
    assert counts.tolist() == [30, 26]
    rows = [part.read_rows(np.arange(n)) for part, n in zip(alone, counts, strict=True)]
    together = collections.Counter(row.tobytes() for row in joined(batches)["targets"])
    assert together == collections.Counter(row.tobytes() for row in joined(rows)["targets"])
    with pytest.raises(TypeError, match="no epochs"):
        mixed.eval_batches()


def test_every_key_of_real_shards_is_read_once_an_epoch(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(40):
        pixels = rng.integers(0, 256, (16, 16), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number:02}.png")
    options = {"name": "jpeg", "size": 16, "mode": "L", "quality": 50, "strip": "header"}
    folder = prepare(
        source=f"folder:{tmp_path / 'photos'}",
        representation=options,
        out=tmp_path / "shards",
        num_shards=3,
        copies=1,
        workers=1,
    )
    documents = Shards(folder)
    stored = loader([documents], seq_len=1024, batch_size=3)
    rows_per_epoch = stored.plan.rows_per_epoch
    for epoch in range(2):
        numbers = np.arange(rows_per_epoch) + epoch * rows_per_epoch
        order = stored.plan.rows(numbers).pieces[:, 0].tolist()
        keys = collections.Counter(documents.key(document) for document in order)
        assert keys == {f"{number:02}.png": 2 for number in range(40)}
        rows = stored.read_rows(numbers)
        bos, eos = documents.representation.bos, documents.representation.eos
        for document, (tokens, targets) in zip(order, pieces_of(rows), strict=True):
            (expected,) = documents.read([document])
            assert tokens.tolist() == [bos, *expected] and targets.tolist() == [*expected, eos]
    assert_equal(
        first(Loader(Shards(folder), stored.plan, batch_size=3).batches(4), 9),
        first(stored.batches(), 13)[4:],
    )


# Hosts and steps


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_any_number_of_hosts_reads_the_same_global_batches(mode, hosts):
    whole = [loader(mode=mode).read_rows(8 * step + np.arange(8)) for step in range(30)]
    shares = np.split(np.arange(8), hosts)
    parts = [first(loader(mode=mode).batches(rows=share), 30) for share in shares]
    assert_equal(whole, [joined(step) for step in zip(*parts, strict=True)])


@pytest.mark.parametrize("start", [0, 1, 31, 1000])
def test_batches_from_a_step_equal_those_of_an_uninterrupted_run(start):
    reference = loader(label_dropout=0.3)
    batches = reference.batches(start)
    assert batches.step == start
    expected = [reference.read_rows(8 * step + np.arange(8)) for step in range(start, start + 40)]
    assert_equal(first(batches, 40), expected)
    assert batches.step == start + 40


@pytest.mark.parametrize("processes", [1, 2])
def test_new_processes_resume_the_batches_of_eight_hosts(processes, tmp_path):
    """Eight hosts stop in the middle of an epoch; new processes resume, byte for byte."""
    whole = loader(label_dropout=0.3)
    stop, end = 5, 25
    assert 8 * stop % whole.plan.rows_per_epoch and 8 * end > whole.plan.rows_per_epoch
    expected = [whole.read_rows(8 * step + np.arange(8)) for step in range(end)]
    eight = [whole.batches(rows=[host]) for host in range(8)]
    before = [joined(step) for step in zip(*(first(b, stop) for b in eight), strict=True)]
    assert_equal(before, expected[:stop])
    (step,) = {batches.step for batches in eight}

    running = [
        run_here("read", step, end, rank, processes, tmp_path / f"{rank}.npz")
        for rank in range(processes)
    ]
    finish(running)
    parts = [np.load(tmp_path / f"{rank}.npz") for rank in range(processes)]
    after = [
        {name: np.concatenate([part[f"{name}{t}"] for part in parts]) for name in expected[0]}
        for t in range(step, end)
    ]
    assert_equal(after, expected[stop:])


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_threads_do_not_change_batches(threads):
    assert_equal(first(loader(threads=threads).batches(2), 70), first(loader().batches(2), 70))


def test_worker_processes_do_not_change_batches():
    if not flags.FLAGS.is_parsed():
        with pytest.raises(RuntimeError, match="mark_as_parsed"):
            loader(workers=2).batches()
        flags.FLAGS.mark_as_parsed()
    # One mixture has plans of both modes, so that workers are started once.
    documents = [Memory(200), Memory(100, seed=1)]
    plans = [
        make_plan(part.lengths + 1, seq_len=ROW, mode=mode)
        for part, mode in zip(documents, MODES, strict=True)
    ]
    mixture = Mixture(plans, [(0, (1, 1))])
    assert_equal(
        first(Loader(documents, mixture, batch_size=8, workers=2).batches(3), 140),
        first(Loader(documents, mixture, batch_size=8).batches(3), 140),
    )


# Evaluation


@pytest.mark.parametrize("batch_size", [1, 7, 8, 500])
def test_evaluation_reads_every_document_once_in_batches_of_one_shape(batch_size):
    documents = Memory(200)
    evaluation = loader([documents], batch_size=batch_size)
    batches = list(evaluation.eval_batches())
    assert len(batches) == evaluation.num_eval_batches
    assert {batch["tokens"].shape for batch in batches} == {(batch_size, ROW)}
    rows = joined(batches)
    assert not rows["weights"][evaluation.plan.rows_per_epoch :].any()
    assert contents_of_rows(rows) == contents([documents])


def test_every_host_gets_the_same_number_of_evaluation_batches():
    evaluation = loader(batch_size=8)
    whole = list(evaluation.eval_batches())
    for hosts in (2, 8):
        parts = [list(evaluation.eval_batches(rows=rows)) for rows in np.split(np.arange(8), hosts)]
        assert_equal(whole, [joined(step) for step in zip(*parts, strict=True)])


# Devices


def test_each_process_reads_the_rows_its_devices_hold():
    check_placement()


def test_processes_that_share_rows_read_them_both():
    """Two real processes of two devices each; the sequence is split across the processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    finish([run_here("distributed", rank, port, devices=2) for rank in range(2)])


# Rejected documents and options


def test_documents_rejected_as_damaged_become_padding():
    class Damaged(Memory):
        def read(self, documents):
            return [np.zeros(0, np.uint16) if d == 3 else self.tokens[d] for d in documents]

    for mode in MODES:
        whole, damaged = (loader([kind(60)], mode=mode) for kind in (Memory, Damaged))
        rows = whole.plan.rows_per_epoch
        sound, torn = (part.read_rows(np.arange(rows)) for part in (whole, damaged))
        lost = sound["weights"] != torn["weights"]
        assert lost.sum() == whole.documents[0].lengths[3] + 1
        for name in sound:
            assert not torn[name][lost].any()
            assert np.array_equal(sound[name][~lost], torn[name][~lost])


def test_documents_of_another_length_than_planned_are_refused():
    class Changed(Memory):
        def read(self, documents):
            return [self.tokens[d][:-1] if d == 3 else self.tokens[d] for d in documents]

    with pytest.raises(ValueError, match="Document 3 has 16 tokens, expected the 17"):
        loader([Changed(20)]).read_rows(np.arange(40))
    with pytest.raises(ValueError, match="Document 3 has"):
        first(loader([Changed(20)]).batches(), 5)


def test_a_plan_for_other_documents_is_refused():
    documents = Memory(20)
    for lengths in (documents.lengths, documents.lengths[:-1] + 1):
        plan = make_plan(lengths, seq_len=ROW)
        with pytest.raises(ValueError, match="expected 20 documents of 557"):
            Loader(documents, plan, batch_size=2)


def test_sources_of_different_representations_are_refused():
    with pytest.raises(ValueError, match="different representations"):
        loader([Memory(20), Memory(20, num_labels=0)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"label_dropout": 1.5}, "label_dropout is 1.5"),
        ({"documents": [Memory(9, num_labels=2)]}, "up to 4.*2 label tokens.*at least 5"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        loader(**options)
    with pytest.raises(ValueError, match="start_step is -3"):
        loader().batches(-3)


def test_the_fingerprint_covers_everything_that_affects_a_batch():
    prints = {
        loader(**options).fingerprint
        for options in (
            {},
            {"batch_size": 4},
            {"seed": 1},
            {"label_dropout": 0.1},
            {"plan_seed": 1},
            {"documents": [Memory(200, seed=1)]},
            {"documents": [Memory(200, num_labels=9)]},
        )
    }
    assert len(prints) == 7
    assert loader(threads=2).fingerprint == loader().fingerprint


# Real processes: this file run as a program


def run_here(*arguments, devices: int = 1) -> subprocess.Popen:
    environment = {
        "PYTHONPATH": str(ROOT),
        "PATH": "/usr/bin:/bin",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(running: list[subprocess.Popen]) -> None:
    try:
        results = [(process.communicate(timeout=120)[0], process.returncode) for process in running]
    finally:
        for process in running:
            process.kill()
    for output, code in results:
        assert code == 0, output


def read_in_process(start: str, end: str, rank: str, processes: str, path: str) -> None:
    rows = np.split(np.arange(8), int(processes))[int(rank)]
    batches = first(loader(label_dropout=0.3).batches(int(start), rows=rows), int(end) - int(start))
    arrays: dict[str, Any] = {
        f"{name}{step}": part
        for step, batch in enumerate(batches, int(start))
        for name, part in batch.items()
    }
    np.savez(path, **arrays)


def check_placement() -> None:
    """Compares global arrays on eight simulated devices with the rows of the plan."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    whole = loader()
    expected = [whole.read_rows(8 * step + np.arange(8)) for step in range(3)]
    devices = np.array(jax.devices()).reshape(2, 2, 2)
    mesh = jax.sharding.Mesh(devices, ("replica", "fsdp", "sequence"))
    for spec in ((("replica", "fsdp"), "sequence"), (None, "sequence"), ("fsdp",), ()):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        batches = first(whole.batches(sharding=sharding), 3)
        assert all(part.sharding == sharding for part in batches[0].values())
        assert_equal([{name: np.asarray(b[name]) for name in b} for b in batches], expected)
    evaluated = list(whole.eval_batches(sharding=sharding))
    assert len(evaluated) == whole.num_eval_batches


def place_in_one_of_two_processes(rank: str, port: str) -> None:
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=int(rank))
    whole = loader()
    (expected,) = first(whole.batches(5), 1)
    by_process = np.array(jax.devices()).reshape(2, 2)
    # Rows across the processes: each reads its half. Sequence across them: both read all rows.
    for devices, spec, rows in (
        (by_process, ("data", "sequence"), np.split(np.arange(8), 2)[int(rank)]),
        (by_process.T, ("data", "sequence"), np.arange(8)),
        (by_process.T, ("data",), np.arange(8)),
    ):
        mesh = jax.sharding.Mesh(devices, ("data", "sequence"))
        batches = whole.batches(5, sharding=NamedSharding(mesh, PartitionSpec(*spec)))
        assert np.array_equal(batches.rows, rows)
        (batch,) = first(batches, 1)
        for name, array in batch.items():
            assert array.shape == (8, ROW)
            for shard in array.addressable_shards:
                assert np.array_equal(np.asarray(shard.data), expected[name][shard.index])


if __name__ == "__main__":
    role, *rest = sys.argv[1:]
    roles: dict[str, Callable[..., None]] = {
        "read": read_in_process,
        "distributed": place_in_one_of_two_processes,
    }
    roles[role](*rest)
