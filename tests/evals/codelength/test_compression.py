"""evals.compression: archives restore files byte for byte, in the size of their likelihood."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from data_pipelines import representations
from data_pipelines.representations.jpeg import coefficients
from evals.codelength import archive, jpegxl
from evals.codelength.archive import Codec
from evals.codelength.arithmetic import TOTAL, CodingError, Decoder, Encoder, cumulative_frequencies
from evals.compression import compression, restore
from evals.inputs.documents import Documents
from jpeglm_jax.generation.scoring import Scorer
from tests.evals.models import untrained
from tests.evals.test_evaluation import write_photos


def coded(intervals, symbols):
    encoder = Encoder()
    for starts, symbol in zip(intervals, symbols, strict=True):
        encoder.write(int(starts[symbol]), int(starts[symbol + 1]))
    return encoder.finish()


@pytest.mark.parametrize("seed", range(8))
def test_symbols_are_restored_and_take_their_information(seed):
    rng = np.random.default_rng(seed)
    num_symbols = int(rng.integers(2, 400))
    logits = rng.normal(0, rng.choice([0.1, 3, 20]), (300, num_symbols)).astype(np.float32)
    intervals = cumulative_frequencies(logits)
    assert (np.diff(intervals) > 0).all() and (intervals[:, -1] == TOTAL).all()
    symbols = rng.integers(0, num_symbols, 300)  # including unlikely ones
    stream = coded(intervals, symbols)
    decoder = Decoder(stream)
    assert [decoder.read(starts) for starts in intervals] == symbols.tolist()
    frequencies = np.diff(intervals)[np.arange(300), symbols]
    assert 8 * len(stream) - np.log2(TOTAL / frequencies).sum() < 16


def test_carries_propagate_through_many_bytes():
    # The last interval of many symbols at the top of the range: its low end is 0.FFFF...
    top = np.array([0, TOTAL - 1, TOTAL])
    likely = np.array([0, 1, TOTAL])
    intervals = [likely] * 3000 + [top, likely, top, likely] * 3
    for symbols in ([1] * 3000 + [0, 1, 1, 0] * 3, [1] * 3000 + [1, 1, 0, 1] * 3):
        decoder = Decoder(coded(intervals, symbols))
        assert [decoder.read(starts) for starts in intervals] == symbols


def test_frequencies_lose_almost_nothing():
    logits = np.random.default_rng(0).normal(0, 4, (50, 300)).astype(np.float32)
    p = np.asarray(jax.nn.softmax(logits.astype(np.float64)))
    q = np.diff(cumulative_frequencies(logits)) / TOTAL
    assert (p * np.log2(p / q)).sum(1).max() < 1e-5
    with pytest.raises(CodingError, match="not finite"):
        cumulative_frequencies(np.array([[0.0, np.nan]]))


@pytest.mark.parametrize("devices", [1, 8])
def test_documents_of_all_lengths_are_restored_in_the_size_of_their_likelihood(devices, tmp_path):
    model = untrained(seq_len=24, devices=devices)
    rng = np.random.default_rng(0)
    documents = [
        (256 + n % 2, rng.integers(0, 256, size).astype(np.uint16))
        for n, size in enumerate((5, 23, 0, 60, 24, 1))
    ]
    codec = Codec(model, batch_size=4, stride=10)
    path = tmp_path / "archive"
    found = archive.write_archive(path, model, codec, documents, list("abcdef"))
    bits = [
        -value / np.log(2) for value in Scorer(model, batch_size=4, stride=10)(documents)
    ]  # in one pass per window, not step by step
    for each, expected in zip(found, bits, strict=True):
        assert len(archive.with_size(each.stream)) <= 1.001 * expected / 8 + 4
        assert each.bits == pytest.approx(expected, rel=1e-5)
    back = archive.read_archive(path, model)
    assert [key for key, _ in back] == list("abcdef")
    for (_, tokens), (_, wanted) in zip(back, documents, strict=True):
        np.testing.assert_array_equal(tokens, wanted)


def test_a_damaged_or_foreign_archive_is_rejected(tmp_path):
    model = untrained(seq_len=24)
    documents = [(256, np.arange(40, dtype=np.uint16))] * 3
    path = tmp_path / "archive"
    archive.write_archive(path, model, Codec(model, batch_size=4), documents, "abc")
    whole = path.read_bytes()
    for at in (-30, -90):
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(CodingError):
            archive.read_archive(path, model)
    for data in (b"", b"nonsense" * 9, whole[:40], whole[:-3], whole + b"more"):
        path.write_bytes(data)
        with pytest.raises(CodingError, match="not an archive"):
            archive.read_archive(path, model)
    path.write_bytes(whole)
    with pytest.raises(CodingError, match="step is 9 here and 3 there"):
        archive.read_archive(path, dataclasses.replace(model, step=9))
    other = jax.tree.map(lambda x: x + 0.1, model.params)
    with pytest.raises(CodingError):
        archive.read_archive(path, dataclasses.replace(model, params=other))


def test_sizes_are_compared_and_the_archive_restores_files(tmp_path):
    model = untrained(seq_len=300, num_labels=0, size=32, quality=25)
    photos = Documents(str(write_photos(tmp_path / "photos", range(5))), model.representation)
    out = tmp_path / "out"
    found = compression(model, photos, out, write_archive=True, batch_size=8)
    assert found == json.loads((out / "compression.json").read_text())
    jpeg = model.representation
    files = [jpeg.to_bytes(document.tokens) for document in photos]
    streams = [document.tokens.size for document in photos]
    assert found["file_bytes_per_image"] == pytest.approx(np.mean([len(file) for file in files]))
    assert found["stream_bytes_per_image"] == pytest.approx(np.mean(streams))
    # Saved: three markers of two bytes, the DRI segment of six, and padding between MCUs.
    saved = found["file_bytes_per_image"] - found["file_without_restarts_bytes_per_image"]
    assert 12 <= saved <= 40
    stream_saved = (
        found["stream_bytes_per_image"] - found["stream_without_restarts_bytes_per_image"]
    )
    assert stream_saved == pytest.approx(saved)
    assert found["model_bytes_per_image"] * 8 == pytest.approx(found["bits_per_image"])
    per_image = found["archive"]["bytes_over_likelihood_per_image"]
    assert 0 < per_image < 4 + 0.001 * found["model_bytes_per_image"]
    assert found["archive"]["files_restored"] == 5
    assert ("jpegxl_file_bytes_per_image" in found) == (jpegxl.version() is not None)
    assert restore(model, out / "archive.jlma", tmp_path / "back") == 5
    assert [path.read_bytes() for path in sorted((tmp_path / "back").glob("*.jpg"))] == files


def test_a_missing_tool_is_named_and_the_rest_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    model = untrained(seq_len=300, num_labels=0, size=32, quality=25, restart_interval=0)
    photos = Documents(str(write_photos(tmp_path / "photos", range(2))), model.representation)
    found = compression(model, photos, tmp_path / "out")
    missing = found["not_computed"]
    assert "not installed" in missing["jpegxl_file_bytes"]
    assert "no restart markers" in missing["file_without_restarts_bytes"]
    assert "give --archive" in missing["archive_bytes"]
    assert found["model_bytes_per_image"] > 0


def test_the_same_coefficients_without_markers(tmp_path):
    jpeg = representations.make("jpeg", size=48, quality=50)
    plain = dataclasses.replace(jpeg, restart_interval=0)
    image = Image.open(write_photos(tmp_path / "photos", [1]) / "001.png")
    with_markers, without = (one.to_bytes(one.encode(image)) for one in (jpeg, plain))
    rewrite = coefficients.with_restart_interval
    assert rewrite(with_markers, jpeg.format, 0) == without
    assert rewrite(without, plain.format, 1) == with_markers
    with pytest.raises(ValueError, match="not canonical"):
        rewrite(with_markers[:-40] + b"\xff\xd9", jpeg.format, 0)


@pytest.mark.skipif(jpegxl.version() is None, reason="cjxl is not installed")
def test_jpeg_xl_is_smaller_and_the_codestream_is_a_part_of_it(tmp_path):
    jpeg = representations.make("jpeg", size=256, quality=75, restart_interval=0)
    image = Image.open(write_photos(tmp_path / "photos", [1], size=(256, 256)) / "001.png")
    file = jpeg.to_bytes(jpeg.encode(image))
    found = jpegxl.transcode(file)
    assert 0 < found.codestream < found.file < len(file)
    with pytest.raises(jpegxl.JpegXlError, match="cannot recompress"):
        jpegxl.transcode(b"no JPEG")


def test_only_whole_jpeg_xl_files_have_a_codestream():
    box = (16).to_bytes(4, "big") + b"jxlc" + bytes(8)
    part = (20).to_bytes(4, "big") + b"jxlp" + bytes(12)
    assert jpegxl.codestream_size(box) == 8
    assert jpegxl.codestream_size(part + box) == 16
    assert jpegxl.codestream_size(b"\xff\x0aabc") == 5
    assert jpegxl.codestream_size(bytes(4) + b"jxlc" + bytes(5)) == 5
    for wrong in (b"", b"nonsense", box[:-1]):
        with pytest.raises(jpegxl.JpegXlError):
            jpegxl.codestream_size(wrong)
