"""Readers of .npz files and archives are not misled by the sizes that headers state."""

import io
import struct
import zipfile

import numpy as np
import pytest

from data_pipelines.utils import npz
from evals.codelength import archive
from tests.evals.models import untrained


def header(shape):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "<f8", "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


@pytest.mark.parametrize("shape", [(10**12,), (2**40, 2**40), (3,)])
def test_an_array_that_is_larger_than_its_file_is_refused(shape, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("mu.npy", header(shape) + np.zeros(2).tobytes())
    with pytest.raises(npz.NpzError, match=r"mu\.npy states .* has"):
        npz.load(tmp_path / "a.npz")


def test_a_member_that_states_more_than_it_can_unpack_to_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, mu=np.zeros(2))
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02") + 24  # the uncompressed size in the central directory
    data[at : at + 4] = struct.pack("<I", 2**31)
    path.write_bytes(data)
    with pytest.raises(npz.NpzError, match="2,147,483,648 bytes in a file"):
        npz.load(path)


def test_whole_files_are_read(tmp_path):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.array("text"), "c": np.zeros((0, 4))}
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    for name, array in npz.load(tmp_path / "a.npz").items():
        np.testing.assert_array_equal(array, arrays[name])


def test_an_archive_with_an_endless_size_is_refused(tmp_path):
    model = untrained()
    documents = [(model.representation.bos, np.array([1, 2, 3], np.int32))]
    path = tmp_path / "a.archive"
    archive.write_archive(path, model, archive.Codec(model, batch_size=2), documents, ["a"])
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"}") + 1] + b"\xff" * 10_000_000)
    with pytest.raises(archive.CodingError, match="64 bits"):
        archive.read_archive(path, model)
