"""Pictures of a generation job: clips that play, completions next to their originals."""

import io

import av
import numpy as np
import pytest
from PIL import Image

from data_pipelines import representations
from data_pipelines.media import movies
from jpeglm_jax.generation import pictures
from jpeglm_jax.generation.prompts import Request


@pytest.fixture(scope="module")
def clips():
    return representations.make("avc", size=(32, 32), fps=5, frames=6, qp=30, slice_mbs=0)


def moving(step):
    """A square that moves to the right."""
    frames = np.zeros((6, 32, 32, 3), np.uint8)
    for time, frame in enumerate(frames):
        frame[8:20, 2 + step * time : 12 + step * time] = 220
    return frames


def frames_of(data, kind):
    with av.open(io.BytesIO(data), format=kind) as file:
        return [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]


def test_clips_become_mp4_files_and_are_shown_next_to_their_originals(clips, tmp_path):
    originals = {f"v{step}.mp4#0": clips.encode(moving(step)) for step in (1, 2)}
    requests, lines = [], []
    for number, (key, tokens) in enumerate(originals.items()):
        prefix = clips.prompt(tokens, 0.5)
        requests.append(Request(np.concatenate([[clips.bos], prefix]), source=key))
        name = f"{number:06d}.h264"
        (tmp_path / name).write_bytes(clips.to_bytes(tokens))
        lines.append({"number": number, "file": name, "source": key})
    requests.append(requests[0])
    lines.append({"number": 2, "file": "", "source": lines[0]["source"]})
    documents = [*originals.values(), np.array([clips.eos])]
    pictures.write_pictures(clips, tmp_path, lines, documents, requests, originals)

    for line, tokens in zip(lines, originals.values(), strict=False):
        played = frames_of((tmp_path / line["file"]).with_suffix(".mp4").read_bytes(), "mp4")
        np.testing.assert_array_equal(played, clips.decode(tokens))  # remuxed, not encoded again
    names = {path.name for path in (tmp_path / "side_by_side").iterdir()}
    assert names == {f"{n:06d}.{kind}" for n in (0, 1) for kind in ("png", "mp4", "gif")}
    shown = frames_of((tmp_path / "side_by_side" / "000001.mp4").read_bytes(), "mp4")
    assert len(shown) == 6 and shown[0].shape == (128, 3 * 128 + 2 * 4, 3)
    middle = slice(132, 132 + 128)
    assert shown[2][:, middle].min() < 50  # in the prompt
    assert shown[3][:, middle].min() > 240  # after the prompt
    with Image.open(tmp_path / "side_by_side" / "000001.gif") as gif:
        assert gif.n_frames == 6 and gif.info["loop"] == 0 and gif.info["duration"] == 200
    assert Image.open(tmp_path / "grid.png").width > 5 * 48


def test_a_stream_without_a_picture_becomes_no_clip(clips, tmp_path):
    lines = [{"number": 0, "file": "000000.h264", "source": ""}]
    documents = [np.frombuffer(b"nothing", np.uint8)]
    requests = [Request(np.array([clips.bos]))]
    pictures.write_pictures(clips, tmp_path, lines, documents, requests, {})
    assert not (tmp_path / "000000.mp4").exists()
    assert (tmp_path / "grid.png").exists()


def test_clips_side_by_side_end_in_white():
    black = [Image.new("RGB", (10, 7))] * 3
    shown = movies.side_by_side([black, black[:1], []])
    assert len(shown) == 3
    assert all(side % 2 == 0 for side in shown[0].size)
    assert shown[1].getpixel((0, 0)) == (0, 0, 0)
    assert shown[1].getpixel((140, 3)) == shown[0].getpixel((275, 3)) == (255, 255, 255)
    with pytest.raises(ValueError, match="no frame to show"):
        movies.side_by_side([[]])
