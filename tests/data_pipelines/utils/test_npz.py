"""Arrays of .npz files are read whole or by rows, without pickles and without their memory."""

import contextlib
import tracemalloc

import numpy as np
import pytest

from data_pipelines.utils import npz
from data_pipelines.utils.npz import NpzError

SAVERS = {"stored": np.savez, "compressed": np.savez_compressed}


@pytest.fixture(params=SAVERS)
def saved(request, tmp_path):
    def save(**arrays):
        SAVERS[request.param](tmp_path / "a.npz", **arrays)
        return tmp_path / "a.npz"

    return save


def test_rows_are_those_of_the_array_in_any_order(saved):
    array = np.random.RandomState(0).randint(0, 256, (50, 7, 3)).astype(np.uint8)
    rows = npz.Rows(saved(other=np.ones(3), arr_0=array), "arr_0")
    assert len(rows) == 50 and rows.shape == array.shape and rows.dtype == np.uint8
    for number in (49, 0, 17, 17, 3):
        np.testing.assert_array_equal(rows[number], array[number])
    with pytest.raises(IndexError):
        rows.read(50)


def test_only_the_named_arrays_are_read(saved):
    path = saved(a=np.arange(3), b=np.full((4, 5), 2.5), c=np.array([{}], dtype=object))
    found = npz.load(path, ["b", "absent"])
    assert list(found) == ["b"] and found["b"].tolist() == np.full((4, 5), 2.5).tolist()
    stated = npz.headers(path)
    assert stated["b"].shape == (4, 5) and stated["c"].dtype.hasobject
    with pytest.raises(NpzError, match="Object arrays"):
        npz.load(path)


def test_arrays_of_objects_in_fortran_order_or_absent_are_refused(saved):
    path = saved(
        objects=np.array([{}, []], dtype=object), fortran=np.asfortranarray(np.ones((3, 4))), one=5
    )
    for name, words in [
        ("objects", "objects in .*a.npz holds Python objects"),
        ("fortran", "ascontiguousarray"),
        ("one", "a single value"),
        ("absent", r"holds \['fortran', 'objects', 'one'\], expected an array absent"),
    ]:
        with pytest.raises(NpzError, match=words):
            npz.Rows(path, name)


def test_damaged_files_end_in_one_kind_of_error(saved):
    path = saved(arr_0=np.arange(4000).reshape(40, 100))
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for end in rng.integers(0, len(whole), 40):
        path.write_bytes(whole[:end])
        with pytest.raises(NpzError):
            npz.Rows(path, "arr_0").read(39)
    for at in rng.integers(0, len(whole), 150):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with contextlib.suppress(NpzError, IndexError):  # a header may state fewer rows
            assert len(npz.Rows(path, "arr_0").read(39)) in (400, 800)


def test_memory_holds_the_requested_rows_only(saved):
    array = np.random.RandomState(0).randint(0, 256, (1000, 64, 64, 3)).astype(np.uint8)
    path = saved(arr_0=array, mu=np.ones(5))
    tracemalloc.start()
    rows = npz.Rows(path, "arr_0")
    total = sum(int(rows[number].sum()) for number in range(1000))
    npz.load(path, ["mu"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total == int(array.sum(dtype=np.int64))
    assert peak < array.nbytes / 2
