"""Weights files: nothing is executed, damage is rejected, hashes are checked."""

import contextlib
import functools
import hashlib
import http.server
import importlib.util
import io
import pickle
import struct
import threading
import zipfile

import numpy as np
import pytest

from evals.features import weights
from evals.features.base import WeightsError
from jpeglm_jax.huggingface import pth
from jpeglm_jax.huggingface.pth import PthError

# Pickles written by hand, as `torch.save` writes them: see `pickletools`.
FLOATS = np.arange(12, dtype=np.float32)
DATA = FLOATS.tobytes()


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value):
    return b"J" + struct.pack("<i", value)


def storage(key="0", size=12, kind="FloatStorage"):
    name = f"ctorch\n{kind}\n".encode()
    return b"(" + text("storage") + name + text(key) + text("cpu") + number(size) + b"tQ"


def tensor(offset, shape, strides, stored=None, function=b"ctorch._utils\n_rebuild_tensor_v2\n"):
    sizes = (
        b"(" + b"".join(map(number, shape)) + b"t" + b"(" + b"".join(map(number, strides)) + b"t"
    )
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    return function + b"(" + (stored or storage()) + number(offset) + sizes + hooks + b"tR"


def state_dict(**tensors):
    items = b"".join(text(name) + value for name, value in tensors.items())
    return b"\x80\x02ccollections\nOrderedDict\n)R(" + items + b"u}" + text("_metadata") + b"}sb."


def zipped(program, files=(("data/0", DATA),)):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        for name, data in files:
            archive.writestr(f"archive/{name}", data)
    return buffer.getvalue()


def legacy(program, data=DATA, count=12):
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    version, system = pickle.dumps(1001, 2), pickle.dumps({"little_endian": True}, 2)
    keys = pickle.dumps(["0"], 2)
    return magic + version + system + program + keys + struct.pack("<q", count) + data


ORDINARY = state_dict(a=tensor(0, (3, 4), (4, 1)), b=tensor(2, (2, 3), (1, 4)))


@pytest.mark.parametrize("form", [zipped, legacy])
def test_both_forms_of_pytorchs_files_are_read(form):
    found = pth.read(form(ORDINARY))
    np.testing.assert_array_equal(found["a"], FLOATS.reshape(3, 4))
    np.testing.assert_array_equal(found["b"], FLOATS.reshape(3, 4)[:, 2:4].T)


def test_a_state_dict_within_a_checkpoint_is_found():
    program = b"\x80\x02}" + text("epoch") + number(3) + b"s" + text("state_dict")
    program += state_dict(a=tensor(0, (2,), (1,)))[2:-1] + b"s."
    assert list(pth.read(zipped(program))) == ["a"]


class Ran(Exception):
    """Raised if a pickle is executed."""


def harm(*_):
    raise Ran


class Malicious:
    def __reduce__(self):
        return harm, ("touched",)


@pytest.mark.parametrize("form", [zipped, legacy])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_malicious_file_runs_nothing(form, protocol):
    program = pickle.dumps({"a": Malicious()}, protocol)
    with pytest.raises(Ran):
        pickle.loads(program)  # it is harmful
    with pytest.raises(PthError, match=r"would run .*test_weights.harm"):
        pth.read(form(program))


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02cos\nsystem\n" + text("true") + b"\x85R.",
        b"\x80\x02cbuiltins\neval\n" + text("1") + b"\x85R.",
        b"\x80\x04" + text("posix") + text("system") + b"\x93" + text("true") + b"\x85R.",
        b"\x80\x02ctorch\n_utils._rebuild_tensor_v2.__globals__\n.",
        b"\x80\x02(ios\nsystem\n.",  # INST
        b"\x80\x02(cos\nsystem\n" + text("true") + b"o.",  # OBJ
        b"\x80\x02cos\nsystem\n)\x81.",  # NEWOBJ
        b"\x80\x02\x82\x01.",  # EXT1
        b"\x80\x02Pos\n.",  # PERSID
        b"\x80\x02ctorch\nFloatStorage\n)R.",  # a type, not a function
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}" + text("__globals__") + b"}sb.",  # BUILD
    ],
)
def test_no_other_instruction_of_a_pickle_is_interpreted(program):
    with pytest.raises(PthError):
        pth.read(zipped(program))


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (13,), (1,)),
        (1, (3, 4), (4, 1)),
        (0, (2, 2), (1, 11)),
        (0, (5, 9), (0, 0)),
        (12, (1,), (1,)),
    ],
)
def test_a_tensor_outside_its_storage_is_rejected(offset, shape, strides):
    with pytest.raises(PthError, match="lies outside"):
        pth.read(zipped(state_dict(a=tensor(offset, shape, strides))))


@pytest.mark.parametrize("form", [zipped, legacy])
def test_a_storage_cannot_be_described_twice(form):
    """The second description is larger than the stored data."""
    larger = tensor(0, (1000,), (1,), storage(size=1000))
    for first, second in [(tensor(0, (12,), (1,)), larger), (larger, tensor(0, (12,), (1,)))]:
        with pytest.raises(PthError):
            pth.read(form(state_dict(a=first, b=second)))


def test_negative_strides_and_sizes_are_rejected():
    for shape, strides in [((3,), (-1,)), ((-3,), (1,))]:
        with pytest.raises(PthError, match="natural numbers"):
            pth.read(zipped(state_dict(a=tensor(5, shape, strides))))
    with pytest.raises(PthError, match="invalid size"):
        pth.read(zipped(state_dict(a=tensor(0, (1,), (1,), storage(size=-1)))))


def test_a_storage_of_another_size_than_described_is_rejected():
    program = state_dict(a=tensor(0, (12,), (1,)))
    with pytest.raises(PthError, match="has 40 bytes, expected 48"):
        pth.read(zipped(program, [("data/0", FLOATS[:10].tobytes())]))
    with pytest.raises(PthError, match="holds no data/0"):
        pth.read(zipped(program, []))
    with pytest.raises(PthError, match="truncated"):
        pth.read(legacy(program, FLOATS[:10].tobytes()))
    with pytest.raises(PthError, match="another size"):
        pth.read(legacy(program, count=11))


def test_stored_numbers_are_not_copied():
    """The largest files have 4.5 GB."""
    data = zipped(ORDINARY)
    found = pth.read(data)
    whole = np.frombuffer(data, np.uint8)
    assert all(np.shares_memory(whole, tensor) for tensor in found.values())
    at = data.index(DATA) + 5
    with pytest.raises(PthError, match="checksum"):
        pth.read(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


def test_a_bomb_in_the_archive_is_not_unpacked():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + b"N" * 50_000_000)
    with pytest.raises(PthError, match="50000002 bytes"):
        pth.read(buffer.getvalue())


def test_damage_anywhere_raises_only_pth_errors():
    """Every truncation of a file, and every single byte set to other values."""
    for whole in (zipped(ORDINARY), legacy(ORDINARY)):
        for end in range(len(whole)):
            with pytest.raises(PthError):
                pth.read(whole[:end])
        for index in range(len(whole)):
            for value in (0x00, 0x2E, 0x52, 0xFF):
                damaged = whole[:index] + bytes([value]) + whole[index + 1 :]
                with contextlib.suppress(PthError):
                    pth.read(damaged)  # damage in numbers or names is not detected


def deep(depth):
    return b"\x80\x02)" + b"\x85" * depth


def test_deep_nesting_does_not_overflow_the_stack():
    for program in (deep(200_000) + b".", b"\x80\x02}" + deep(200_000)[2:] + b"Ns."):
        with pytest.raises(PthError):
            pth.read(zipped(program))


@pytest.mark.parity
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")
@pytest.mark.parametrize("zip_form", [True, False])
def test_parity_with_torch_save(tmp_path, zip_form):
    import torch

    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 5), torch.nn.BatchNorm2d(4)).half()
    state = model.state_dict() | {"transposed": torch.arange(6.0).reshape(2, 3).T}
    torch.save(state, tmp_path / "model.pth", _use_new_zipfile_serialization=zip_form)
    found = weights.read(tmp_path / "model.pth").tensors
    assert found.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(found[name], value.numpy())


# Files


def safetensors(**arrays):
    header, data = {}, b""
    for name, array in arrays.items():
        end = len(data) + array.nbytes
        kind = {"float32": "F32", "float16": "F16", "int64": "I64"}[array.dtype.name]
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [len(data), end]}
        data += array.tobytes()
    text = repr(header).replace("'", '"').replace("(", "[").replace(",)", "]").replace(")", "]")
    return struct.pack("<Q", len(text)) + text.encode() + data


def test_safetensors_are_read(tmp_path):
    path = tmp_path / "some.safetensors"
    path.write_bytes(safetensors(a=FLOATS.reshape(3, 4), count=np.zeros(1, np.int64)))
    found = weights.read(path)
    np.testing.assert_array_equal(found.tensors["a"], FLOATS.reshape(3, 4))
    assert list(found.tensors) == ["a"]
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_must_have_the_hash_in_its_name(tmp_path):
    data = zipped(ORDINARY)
    right = tmp_path / f"net-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    right.write_bytes(data)
    assert list(weights.read(right).tensors) == ["a", "b"]
    wrong = tmp_path / "net-6726825d.pth"
    wrong.write_bytes(data)
    with pytest.raises(WeightsError, match="begins with 6726825d"):
        weights.read(wrong)


def test_files_without_weights_are_rejected_by_name(tmp_path):
    with pytest.raises(WeightsError, match="there is no file"):
        weights.read(tmp_path / "absent.pth")
    for data in (b"", b"<html>404</html>", b"PK\x03\x04", b"\x80\x02."):
        path = tmp_path / "some.pth"
        path.write_bytes(data)
        with pytest.raises(WeightsError, match="some.pth is not a weights file"):
            weights.read(path)


@pytest.fixture
def server(tmp_path):
    """Serves the files of a folder over HTTP, and lists the requested paths."""
    folder, requested = tmp_path / "served", []
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            requested.append(self.path)

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}", requested
        running.shutdown()


def test_a_url_is_downloaded_once_and_its_hash_checked(tmp_path, server, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, address, requested = server
    data = zipped(ORDINARY)
    name = f"net-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    (folder / name).write_bytes(data)
    for _ in range(2):
        assert list(weights.read(f"{address}/{name}").tensors) == ["a", "b"]
    assert len(requested) == 1
    (folder / "net-6726825d.pth").write_bytes(data)
    with pytest.raises(WeightsError, match="begins with 6726825d"):
        weights.read(f"{address}/net-6726825d.pth")
    with pytest.raises(WeightsError, match="cannot be downloaded.*404"):
        weights.read(f"{address}/absent.pth")
    kept = [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert kept == [name]
