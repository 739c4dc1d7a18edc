"""evals.video: distances of clips, counts of documents, continuations by frame."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from data_pipelines import representations
from data_pipelines.media import movies
from data_pipelines.sources import Item, Source
from evals import video
from evals.distances import quality
from evals.features.base import ClipExtractor, FeatureError
from evals.inputs.clips import GeneratedClips, RealClips
from evals.inputs.codec import GeneratedError
from evals.report import report
from evals.reporting.results import Evaluation
from evals.sections.kinds import KINDS
from jpeglm_jax.generation.tokens import TokenRecord
from tests.evals.plugin import patches
from tests.evals.reporting.reader import read
from tests.evals.schema import follows_schema


class Squares(Source):
    """Clips of a moving square, as .h264 files of high quality, and one broken file."""

    scheme = "squares"

    def __init__(self, count=6, broken=True):
        super().__init__()
        self.count, self.broken = count, broken
        self.fine = representations.make("avc", size=(32, 32), fps=5, frames=6, qp=10, slice_mbs=0)

    def _list(self):
        for number in range(self.count):
            yield Item(f"{number}.h264", number)
        if self.broken:
            yield Item("broken.h264", -1)

    @property
    def label_names(self):
        return ()

    def read(self, locator):
        if locator < 0:
            return b"no video"
        return self.fine.to_bytes(self.fine.encode(moving(locator)))


def moving(number):
    frames = np.full((6, 32, 32, 3), 30, np.uint8)
    for time, frame in enumerate(frames):
        frame[4 + number : 14 + number, 2 + 3 * time : 12 + 3 * time] = 220
    return frames


@pytest.fixture(scope="module")
def clips():
    return representations.make("avc", size=(32, 32), fps=5, frames=6, qp=32, slice_mbs=0)


def write(folder, clips, frames, prompt_tokens=0, broken=0):
    lines = []
    record = TokenRecord(folder, clips.token_dtype)
    for number, own in enumerate(frames):
        tokens = clips.encode(own)
        if number < broken:
            tokens = tokens[: len(clips.format.constants.prefix)]
        record.add(number, tokens)
        lines.append(
            {
                "number": number,
                "file": f"{number:06d}.h264",
                "tokens": tokens.size,
                "valid": number >= broken,
                "source": f"{number}.h264#0",
                "prompt_tokens": prompt_tokens,
            }
        )
    record.join(range(len(lines)))
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    clips.save(folder)
    return GeneratedClips(folder, clips)


def evaluate(generated, clips, out, clip_extractor=None, **options):
    source = Squares(**options)
    sides = [RealClips(source, clips, coded=coded) for coded in (False, True)]
    return video.evaluate(generated, *sides, out, patches(), clip_extractor)


def test_coded_clips_are_at_the_floor_and_noise_is_farther(clips, tmp_path):
    for name in ("coded", "noise"):
        (tmp_path / name).mkdir()
    same = evaluate(write(tmp_path / "coded", clips, map(moving, range(6))), clips, tmp_path / "a")
    # The references are coded twice, these clips once: near the floor, but not equal.
    floor = same["floor"]["pooled_frechet_distance"]
    assert same["pooled_frechet_distance"] == pytest.approx(floor, rel=1.0, abs=1e-3)
    noise = np.random.default_rng(0).integers(0, 256, (6, 6, 32, 32, 3), np.uint8)
    other = evaluate(write(tmp_path / "noise", clips, noise), clips, tmp_path / "b")
    for name in ("pooled_frechet_distance", "frame_frechet_distance"):
        assert other[name] > 10 * same[name]
    assert same["n_references"] == 6 and same["rejected"][0][0] == "broken.h264"
    assert any("no FVD" in text for text in same["warnings"])
    assert follows_schema(same, tmp_path / "a" / "video.json")


def test_documents_that_do_not_decode_count(clips, tmp_path):
    (tmp_path / "clips").mkdir()
    found = evaluate(
        write(tmp_path / "clips", clips, map(moving, range(4)), broken=2), clips, tmp_path / "out"
    )
    assert found["n_generated"] == 4
    codec = found["codec"]
    assert (codec["requested"], codec["strictly_valid"], codec["failed"]) == (4, 2, 2)
    assert codec["frames_missing"] == 2 * 6


def test_continuations_are_compared_with_their_originals_by_frame(clips, tmp_path):
    (tmp_path / "clips").mkdir()
    frozen = [moving(number) for number in range(4)]
    for own in frozen:
        own[3:] = own[2]  # no motion after the prompt
    generated = write(tmp_path / "clips", clips, frozen, prompt_tokens=50)
    found = evaluate(generated, clips, tmp_path / "out")["continuations"]
    assert found["n"] == 4 and len(found["psnr_db"]) == len(found["floor_ssim"]) == 6
    prompt, continued = found["psnr_db"][:3], found["psnr_db"][3:]
    assert min(prompt) > 25 and max(continued) < 20
    assert sorted(continued, reverse=True) == continued
    assert min(found["floor_psnr_db"]) > 25
    assert max(found["ssim"][4:]) < min(found["floor_ssim"])


def test_a_clip_extractor_gets_whole_clips_and_names_the_distance(clips, tmp_path):
    (tmp_path / "clips").mkdir()
    generated = write(tmp_path / "clips", clips, map(moving, range(5)))

    def apply(batch):
        assert batch.shape[1:] == (6, 32, 32, 3) and batch.dtype == np.uint8
        return batch.mean((2, 3)).reshape(len(batch), -1).astype(np.float32)

    extractor = ClipExtractor("i3d", {"version": 1}, apply)
    found = evaluate(generated, clips, tmp_path / "a", extractor)
    assert "fvd" in found and "pooled_frechet_distance" not in found
    other = dataclasses.replace(extractor, name="mine")
    assert "mine_frechet_distance" in evaluate(generated, clips, tmp_path / "b", other)


def test_the_report_embeds_clips(clips, tmp_path):
    (tmp_path / "clips").mkdir()
    generated = write(tmp_path / "clips", clips, map(moving, range(4)), prompt_tokens=9)
    (tmp_path / "clips" / "side_by_side").mkdir()
    (tmp_path / "clips" / "side_by_side" / "000000.mp4").write_bytes(
        movies.mp4([Image.fromarray(frame) for frame in moving(0)], (10, 1))
    )
    (tmp_path / "clips" / "side_by_side" / "000001.mp4").write_bytes(b"no film")
    evaluate(generated, clips, tmp_path / "out")
    report([], [Evaluation.read(tmp_path / "out", tuple(KINDS))], tmp_path / "a.html")
    section = read((tmp_path / "a.html").read_text()).by_id("video")
    film = section.one("video")
    assert film.one("source").attributes["src"].startswith("data:video/mp4;base64,")
    assert film.attributes["poster"].startswith("data:image/png;base64,")
    assert film.attributes["aria-label"].startswith("Continuations of real clips")
    assert len(section.all(cls="plot")) == 2
    assert any("videos/000001.mp4" in each.text for each in section.all(cls="warnings"))
    rows = {head.text for head in section.all("th") if head.attributes["scope"] == "row"}
    assert {"requested", "frames missing"} <= rows


def test_no_clips_are_rejected(clips, tmp_path):
    with pytest.raises(GeneratedError, match=r"no manifest\.jsonl"):
        GeneratedClips(tmp_path, clips)
    generated = write(tmp_path, clips, [moving(0)])
    with pytest.raises(FeatureError, match=r"no readable clip.*broken\.h264"):
        evaluate(generated, clips, tmp_path / "out", count=0)


def test_psnr_and_ssim_equal_scikit_images():
    """Of scikit-image 0.26: peak_signal_noise_ratio; structural_similarity of the luma with
    gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255."""
    random = np.random.default_rng(0)
    a = random.integers(0, 256, (40, 30, 3), np.uint8)
    b = np.clip(a.astype(int) + random.integers(-40, 41, a.shape), 0, 255).astype(np.uint8)
    assert quality.ssim(a, b) == pytest.approx(0.9528816837300178, abs=1e-9)
    assert quality.psnr(a, b) == pytest.approx(21.04858286383202, abs=1e-9)
    assert quality.ssim(a, a) == pytest.approx(1.0)
    assert quality.psnr(a, a) == float("inf")
