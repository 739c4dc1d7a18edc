"""The first lines of a run name what preparation did not use."""

from PIL import Image

from data_pipelines.loading.joined_shards import JoinedShards
from data_pipelines.prepare import prepare
from jpeglm_jax.training import messages


def shards(folder, names):
    for name in names:
        path = folder / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            Image.new("L", (16, 16)).save(path)
        else:
            path.write_bytes(b"x")
    options = dict(name="jpeg", size=16, mode="L", quality=50, strip="header")
    return prepare(source=f"folder:{folder}/photos", representation=options, out=folder / "out")


def test_skipped_rejected_and_doubtful_inputs_are_named(tmp_path):
    out = shards(tmp_path, ["train/0.png", "val/0.png", "val/1.HEIC", "val/2.heic", "val/3.jpg"])
    rejected, reason, skipped, warning = messages.unused(JoinedShards([out], "train"))
    assert "1 inputs" in rejected and "rejects.jsonl" in rejected and reason.split()[0] == "1"
    assert f"skipped in {out}: 2 (2 .heic)" == skipped
    assert "'train', 'val'" in warning


def test_nothing_unused_gives_no_line(tmp_path):
    assert messages.unused(JoinedShards([shards(tmp_path, ["a/0.png"])], "train")) == []
