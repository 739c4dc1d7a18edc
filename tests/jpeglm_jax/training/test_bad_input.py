"""A folder as people have them, trained on: what cannot be used is counted and named."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from data_pipelines.sources import SourceError
from jpeglm_jax.train import train
from tests.jpeglm_jax.conftest import tiny

UNUSABLE = {"empty.jpg", "cut.jpg", "text.png", "header.png", "bomb.png"}
UNUSUAL = {"ink.jpg", "deep.png", "palette.png", "moving.gif", "moving.webp"}


def file_of(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def make_folder(folder):
    """12 plain images, those of UNUSUAL and those of UNUSABLE."""
    random = np.random.default_rng(0)
    plain = [Image.fromarray(random.integers(0, 256, (24, 24, 3), np.uint8)) for _ in range(12)]
    deep = Image.fromarray(random.integers(0, 2**16, (24, 24), np.uint16))
    frames = {"save_all": True, "append_images": plain[1:3]}
    files = {f"{number:02}.png": file_of(image, "PNG") for number, image in enumerate(plain)}
    files |= {
        "ink.jpg": file_of(plain[0].convert("CMYK"), "JPEG"),
        "deep.png": file_of(deep, "PNG"),
        "palette.png": file_of(plain[0].quantize(16), "PNG"),
        "moving.gif": file_of(plain[0], "GIF", **frames),
        "moving.webp": file_of(plain[0], "WEBP", **frames),
        "empty.jpg": b"",
        "cut.jpg": file_of(plain[0].resize((64, 64)), "JPEG")[:700],
        "text.png": b"no image at all",
        "header.png": files["00.png"][:20],
        "bomb.png": file_of(Image.new("1", (20_000, 20_000)), "PNG"),
    }
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    assert set(files) >= UNUSABLE | UNUSUAL
    return folder


def settings(folder, **changes):
    return tiny(
        2,
        **{
            "data.source": f"folder:{folder}",
            "data.conditional": False,
            "data.eval_fraction": 0.3,
            "seq_len": 160,
            "sample.every": 2,
            **changes,
        },
    )


def test_unusable_images_are_counted_and_named_and_the_run_goes_on(tmp_path, capsys):
    folder = make_folder(tmp_path / "photos")
    last = train(settings(folder, **{"evaluate.every": 2}), tmp_path / "run")
    assert np.isfinite(last["eval/loss"])
    said = capsys.readouterr().out
    assert f"rejected: {len(UNUSABLE)} inputs" in said
    assert "the file is empty" in said
    rejects = tmp_path / "run" / "data" / "rejects.jsonl"
    assert str(rejects) in said
    assert {json.loads(line)["key"] for line in rejects.read_text().splitlines()} == UNUSABLE
    manifest = json.loads((tmp_path / "run" / "data" / "manifest.json").read_text())
    documents = sum(split["documents"] for split in manifest["splits"].values())
    assert documents == 12 + len(UNUSUAL)


def test_documents_longer_than_a_row_are_counted(tmp_path, capsys):
    folder = make_folder(tmp_path / "photos")
    (folder / "flat.png").write_bytes(file_of(Image.new("RGB", (24, 24)), "PNG"))
    noisy = {"representation.quality": 90, "seq_len": 80, "data.eval_fraction": 0.5}
    train(settings(folder, **noisy, **{"data.too_long": "cut"}), tmp_path / "cut")
    assert "documents longer than a row truncated" in capsys.readouterr().out
    with pytest.raises(ValueError, match="longer than seq_len 80"):
        train(settings(folder, **noisy), tmp_path / "dropped")


def test_a_folder_without_images_stops_with_one_sentence(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "readme.txt").write_text("none here")
    with pytest.raises(SourceError, match="holds no image"):
        train(settings(tmp_path / "photos"), tmp_path / "run")


def test_a_run_that_would_hold_nothing_out_is_told_which_value_to_raise(tmp_path):
    folder = make_folder(tmp_path / "photos")
    with pytest.raises(ValueError, match="data.eval_fraction = 0.0 takes none of 17 images"):
        train(settings(folder, **{"data.eval_fraction": 0.0}), tmp_path / "run")
