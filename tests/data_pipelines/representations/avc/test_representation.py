"""AVC documents: encoder settings, round trips, prompts, MP4 files."""

from __future__ import annotations

import base64
import fractions
import hashlib
import io
import json
import pickle
import shutil
import subprocess

import av
import numpy as np
import pytest

from data_pipelines import representations
from data_pipelines.representations import make, tokenizer
from data_pipelines.representations.avc import encoder
from data_pipelines.representations.avc.bitstream import nals, parse_pps, parse_slice, parse_sps
from data_pipelines.representations.avc.encoder import AvcFormat, EncoderError
from data_pipelines.representations.avc.mp4 import to_mp4
from tests.data_pipelines.representations.avc.clips import moving

# The paper's command line without input and output.
PAPER = (
    "-vf fps=3,scale=256:144:force_original_aspect_ratio=decrease,"
    "pad=256:144:(ow-iw)/2:(oh-ih)/2 -t 5 -c:v libx264 -pix_fmt yuv420p -profile:v baseline "
    "-qp 37 -bf 0 -an -sn -x264opts slice-max-mbs=1 -trellis 0 -me_method dia -threads 1 -subq 0 "
    "-psy 0 -mixed-refs 0 -fast-pskip 0 -partitions none -refs 3 -bsf:v h264_mp4toannexb"
)

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
SMALL = dict(size=(64, 48), fps=4, frames=6)
SETTINGS = [
    dict(),
    dict(strip="headers"),
    dict(SMALL, qp=30, slice_mbs=0),
    dict(SMALL, slice_mbs=5, strip="headers"),
    dict(SMALL, size=(50, 34), fps=(30000, 1001), slice_mbs=4),
]


def units_of(stream):
    """The NAL units of a stream without start codes."""
    return [stream[nal.payload : nal.end] for nal in nals(stream)]


def nal_types(stream):
    return [unit[0] & 31 for unit in units_of(stream)]


def psnr(ours, theirs):
    error = np.mean((ours.astype(float) - theirs.astype(float)) ** 2)
    return 10 * np.log10(255**2 / error)


def frames_of(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.parametrize("options", SETTINGS)
def test_documents_are_restored_to_whole_streams(options):
    representation = make("avc", **options)
    clip = moving(representation.frames, *representation.size)
    tokens = representation.encode(clip)
    assert tokens.dtype == np.uint16
    file = representation.to_bytes(tokens)
    assert np.array_equal(representation.from_bytes(file), tokens)
    assert representation.validate(tokens) == representations.Validity(
        True, representation.frames, representation.frames
    )
    # Frames are equal to those that FFmpeg decodes from the file.
    with av.open(io.BytesIO(file), format="h264") as container:
        shown = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert np.array_equal(representation.decode(tokens), shown)
    assert psnr(shown, clip) > 20


def test_stripping_removes_only_the_parameter_sets():
    whole, stripped = make("avc"), make("avc", strip="headers")
    clip = moving(cut=8)
    file = whole.to_bytes(whole.encode(clip))
    assert nal_types(file).count(7) == 2, (
        "a change of scene gives an IDR picture with parameter sets"
    )
    assert 6 not in nal_types(file)
    document = stripped.tokenizer.decode(stripped.encode(clip))
    assert set(nal_types(document)) == {1, 5}
    assert stripped.to_bytes(stripped.encode(clip)) == file
    assert stripped.validate(stripped.encode(clip)).valid
    assert np.array_equal(stripped.decode(stripped.encode(clip)), whole.decode(whole.encode(clip)))


def test_the_stream_has_the_papers_structure():
    representation = make("avc")
    file = representation.to_bytes(representation.encode(moving()))
    units = units_of(file)
    sps, pps = parse_sps(units[0]), parse_pps(units[1])
    assert (sps.profile, sps.constrained, sps.width, sps.height) == (66, True, 256, 144)
    assert sps.num_ref_frames == 3
    assert not pps.cabac and not pps.weighted
    headers = [parse_slice(unit, sps, pps) for unit in units[2:]]
    assert len(headers) == 144 * 15
    assert [header.first_mb for header in headers] == [*range(144)] * 15
    assert {(header.slice_type, header.qp) for header in headers} == {(0, 37), (2, 34)}
    assert max(header.num_ref_idx for header in headers) == 3


# SHA-256 of the encoder's output for a synthetic clip, first 16 digits, by x264's build ("x264" in
# `encoder_versions`). Add values only for a new build, and then check that
# `test_the_command_line_of_the_paper_gives_the_same_structure` still passes.
GOLDEN = {
    "core 165": {
        "paper": "3914a187a2c1a4dd",
        "slices of 5": "258422be6070ce33",
        "frames": "0d633c5a6489a7ed",
    }
}


@pytest.mark.parametrize("name", ["paper", "slices of 5", "frames"])
def test_bytes_are_golden(name):
    options = {
        "paper": {},
        "slices of 5": dict(SMALL, slice_mbs=5, strip="headers"),
        "frames": dict(SMALL, qp=30, slice_mbs=0),
    }[name]
    representation = make("avc", **options)
    core = representation.encoder_versions["x264"]
    if core not in GOLDEN:
        pytest.skip(f"no golden bytes for x264 {core}")
    y, x = np.mgrid[: representation.size[1] * 3 // 2, : representation.size[0]]
    frames = [
        av.VideoFrame.from_ndarray(
            ((x // 8 * 31 + y // 8 * 17 + t * 5 + x * y // 64) % 256).astype(np.uint8),
            format="yuv420p",
        )
        for t in range(representation.frames)
    ]
    tokens = representation.encode(frames)
    assert hashlib.sha256(tokens.tobytes()).hexdigest()[:16] == GOLDEN[core][name]
    assert np.array_equal(representation.encode(frames), tokens)


def test_an_option_that_the_encoder_does_not_know_is_an_error(monkeypatch):
    """x264 ignores it and only logs a message."""
    encoder.probe.cache_clear()
    options = AvcFormat(256, 144, (3, 1), 37, 1).options | {"slice-max-mbz": "1"}
    monkeypatch.setattr(AvcFormat, "options", options)
    with pytest.raises(EncoderError, match="slice-max-mbz"):
        make("avc")


OPTIONS = AvcFormat(256, 144, (3, 1), 37, 1).options


@pytest.fixture(scope="module")
def sei():
    """The SEI message in which x264 lists its options."""
    codec = av.CodecContext.create("libx264", "w")
    codec.width, codec.height, codec.pix_fmt = 256, 144, "yuv420p"
    codec.time_base = fractions.Fraction(1, 3)
    params = ":".join(f"{name}={value}" for name, value in OPTIONS.items())
    codec.options = {"x264-params": params, "profile": "baseline"}
    frame = av.VideoFrame.from_ndarray(np.zeros((216, 256), np.uint8), format="yuv420p")
    frame.pts = 0
    stream = b"".join(map(bytes, [*codec.encode(frame), *codec.encode(None)]))
    return next(nal for nal in units_of(stream) if nal[0] & 31 == 6)


@pytest.mark.parametrize(
    ("option", "value", "found"),
    [("ref", "2", "ref=3"), ("me", "hex", "me=dia"), ("subme", "1", "subme=0"),
     ("slice-max-mbs", "2", "slice_max_mbs=1"), ("trellis", "1", "trellis=0"),
     ("qp", "30", "qp=37"), ("psy", "1", "psy=0"),
     ("fast-pskip", "1", "fast_pskip=0"), ("bframes", "2", "bframes=0")],
)  # fmt: skip
def test_an_option_that_is_not_in_effect_is_an_error(sei, option, value, found):
    assert encoder.check_options(sei, OPTIONS).startswith("core ")
    with pytest.raises(EncoderError, match=f"{found}, expected {value}"):
        encoder.check_options(sei, OPTIONS | {option: value})


@pytest.mark.parametrize("change", ["analyse=0x3:0x113", "mixed_ref=1", "cabac=1", "rc=crf"])
def test_other_listed_options_are_an_error(change):
    name, value = change.split("=")
    listed = encoder.listed_options(OPTIONS) | {name: value}
    text = " ".join(f"{key}={value}" for key, value in listed.items())
    with pytest.raises(EncoderError, match=f"{change}, expected "):
        encoder.check_options(f"x264 - core 1 - options: {text}".encode(), OPTIONS)


def test_a_build_without_the_encoder_raises(monkeypatch):
    def missing(name, mode):
        raise av.codec.codec.UnknownCodecError(name)

    encoder.probe.cache_clear()
    monkeypatch.setattr(av.CodecContext, "create", missing, raising=False)
    with pytest.raises(EncoderError, match="has no libx264"):
        AvcFormat(256, 144, (3, 1), 37, 1).constants  # noqa: B018


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(size=(255, 144)), "width=255, expected an even number"),
        (dict(size=(8, 144)), "width=8, expected an integer from 16"),
        (dict(size=256), "size=256, expected .width, height."),
        (dict(fps=0), "fps=0"),
        (dict(fps=(3, 1, 1)), "expected a number or"),
        (dict(qp=0), "qp=0, expected an integer from 1 to 51"),
        (dict(slice_mbs=145), "slice_mbs=145, expected an integer from 0 to 144"),
        (dict(frames=0), "frames=0"),
        (dict(min_frames=16), "min_frames=16, expected an integer from 1 to 15"),
        (dict(strip="tables"), 'strip=.tables., expected one of "none", "headers"'),
    ],
)
def test_options_out_of_range_raise(options, message):
    with pytest.raises(ValueError, match=message):
        make("avc", **options)


def test_equal_options_give_equal_values():
    representation = make("avc", fps=[3, 1], size=[256, 144], min_frames=15)
    assert representation == make("avc")
    assert representation.fingerprint == make("avc").fingerprint
    assert representation.fingerprint != make("avc", qp=36).fingerprint
    assert representations.from_config(representation.to_config()) == representation
    assert pickle.loads(pickle.dumps(representation)) == representation


def test_bpe_tokens_are_the_same_stream(tmp_path):
    plain = make("avc", **SMALL)
    documents = [plain.encode(moving(6, 64, 48, cut=c)).astype("u1").tobytes() for c in range(4)]
    model = tmp_path / "tokenizer.model"
    model.write_bytes(tokenizer.train_bpe(documents, 300))
    bpe = make("avc", **SMALL, tokenizer=str(model))
    clip = moving(6, 64, 48)
    tokens = bpe.encode(clip)
    assert len(tokens) < len(plain.encode(clip))
    assert bpe.to_bytes(tokens) == plain.to_bytes(plain.encode(clip))
    assert bpe.validate(tokens).valid
    half = bpe.prompt(tokens, 0.5)
    assert bpe.tokenizer.decode(half) == plain.tokenizer.decode(
        plain.prompt(plain.encode(clip), 0.5)
    )


@pytest.mark.parametrize("strip", ["none", "headers"])
@pytest.mark.parametrize("cut", [0, 4])
def test_a_prompt_is_cut_at_the_access_unit(strip, cut):
    representation = make("avc", **SMALL, strip=strip)
    tokens = representation.encode(moving(6, 64, 48, cut=cut))
    whole = representation.decode(tokens)
    prefix = representation.format.constants.prefix if strip == "none" else b""
    assert representation.prompt(tokens, 0).astype("u1").tobytes() == prefix
    assert np.array_equal(representation.prompt(tokens, 1), tokens)
    for frames in range(1, 6):
        head = representation.prompt(tokens, frames / 6)
        rest = representation.tokenizer.decode(tokens)[len(head) :]
        assert rest.startswith((b"\0\0\0\1", b"\0\0\1\x65")), "a frame begins here"
        result = representation.validate(head)
        assert (result.valid, result.units) == (False, frames)
        assert "ends after" in result.error
        decoded = representation.salvage(head)
        assert decoded.missing == tuple(range(frames, 6)) and not decoded.errors
        assert np.array_equal(decoded.frames[:frames], whole[:frames])
        assert all(np.array_equal(frame, whole[frames - 1]) for frame in decoded.frames[frames:])
    with pytest.raises(ValueError, match="from 0 to 1"):
        representation.prompt(tokens, 1.5)


def test_min_frames_allows_shorter_clips():
    representation = make("avc", **SMALL, min_frames=2)
    tokens = representation.encode(moving(4, 64, 48))
    assert representation.validate(tokens).valid
    assert representation.decode(tokens).shape == (4, 48, 64, 3)
    assert representation.salvage(representation.prompt(tokens, 0.5)).frames.shape[0] == 2
    with pytest.raises(ValueError, match="1 frames, expected at least 2"):
        representation.encode(moving(1, 64, 48))
    with pytest.raises(ValueError, match="5 frames, expected at least 6"):
        make("avc", **SMALL).encode(moving(5, 64, 48))


def test_a_file_of_other_settings_raises():
    tokens = make("avc", **SMALL).encode(moving(6, 64, 48))
    file = make("avc", **SMALL).to_bytes(tokens)
    with pytest.raises(ValueError, match="parameter sets are not x264's for 64 x 48"):
        make("avc", **dict(SMALL, qp=36)).from_bytes(file)


def test_an_mp4_holds_the_same_slices(tmp_path):
    representation = make("avc", strip="headers")
    tokens = representation.encode(moving(cut=8))
    file = representation.to_bytes(tokens)
    path = tmp_path / "clip.mp4"
    path.write_bytes(to_mp4(file, representation.rate))
    with av.open(str(path)) as container:
        (stream,) = container.streams
        assert (stream.codec_context.name, stream.average_rate, stream.frames) == ("h264", 3, 15)
        packets = [bytes(packet) for packet in container.demux(stream) if packet.size]
    slices = [unit for unit in units_of(file) if unit[0] & 31 in (1, 5)]
    moved = []
    for packet in packets:
        while packet:
            size = int.from_bytes(packet[:4], "big")
            moved.append(packet[4 : 4 + size])
            packet = packet[4 + size :]
    assert [unit for unit in moved if unit[0] & 31 in (1, 5)] == slices
    assert np.array_equal(frames_of(path), representation.decode(tokens))
    with pytest.raises(ValueError, match="no picture"):
        to_mp4(b"", representation.rate)


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_browser_plays_the_mp4(tmp_path):
    """The pixels of a frame in the video element are those of the project's decoder."""
    representation = make("avc", strip="headers")
    tokens = representation.encode(moving(cut=8))
    mp4 = base64.b64encode(to_mp4(representation.to_bytes(tokens), representation.rate)).decode()
    page = tmp_path / "page.html"
    page.write_text(
        f"""<body><p>waiting</p><video muted src="data:video/mp4;base64,{mp4}"></video><script>
        const video = document.querySelector("video"), output = document.querySelector("p");
        video.onerror = () => output.textContent = "error: " + video.error.message;
        const draw = () => {{
          const canvas = document.createElement("canvas");
          [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
          canvas.getContext("2d").drawImage(video, 0, 0);
          const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
          const red = Array.from({{length: 64}}, (_, n) => data[4 * (n * 576 + 100)]);
          output.textContent = JSON.stringify([canvas.width, canvas.height, video.duration, red]);
        }};
        video.requestVideoFrameCallback(draw);
        video.play();
        </script></body>"""
    )
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--allow-file-access-from-files", "--timeout=20000", page.as_uri()]
    output = "waiting"
    for _ in range(6):  # on a busy machine the page may be dumped before it has played a frame
        if output != "waiting":
            break
        shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        output = shown.stdout.partition("<p>")[2].partition("</p>")[0] or "waiting"
    if "error" in output and "DEMUXER_ERROR_NO_SUPPORTED_STREAMS" in output:
        pytest.skip("this Chromium was built without H.264")
    width, height, duration, red = json.loads(output)
    assert (width, height, duration) == (256, 144, 5)
    frames = representation.decode(tokens)[..., 0].reshape(15, -1)[:, np.arange(64) * 576 + 100]
    assert np.abs(frames.astype(int) - red).mean(axis=1).min() < 6


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg command line")
def test_the_command_line_of_the_paper_gives_the_same_structure(tmp_path):
    source, theirs = tmp_path / "source.mp4", tmp_path / "paper.h264"
    clip = moving(60, 256, 144)
    with av.open(str(source), "w") as container:
        stream = container.add_stream("libx264", rate=12, options={"qp": "10"})
        stream.width, stream.height, stream.pix_fmt = 256, 144, "yuv420p"
        for pixels in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    command = ["ffmpeg", "-v", "error", "-i", str(source), *PAPER.split(), "-f", "h264"]
    command.append(str(theirs))
    subprocess.run(command, check=True, timeout=60)
    representation = make("avc")
    (frames,) = representation.open(source.read_bytes())
    ours = representation.to_bytes(representation.encode(frames))
    paper = theirs.read_bytes()
    # The command may use another build of x264 and writes the sample aspect ratio.
    listed = next(unit for unit in units_of(paper) if unit[0] & 31 == 6)
    encoder.check_options(listed, representation.format.options)
    paper = encoder.without_sei(paper)
    units = units_of(paper)
    assert parse_sps(units[0]) == representation.format.constants.sps
    assert units[1] == representation.format.constants.pps_nal
    assert nal_types(paper) == nal_types(ours)
    assert [nal.code for nal in nals(paper)] == [nal.code for nal in nals(ours)]
    restored = representation.format.constants.prefix + paper[paper.index(units[2]) - 3 :]
    assert representation.validate(representation.from_bytes(restored)).valid
    original = clip[::4]
    mine, other = (psnr(representation.decode(representation.from_bytes(s)), original)
                   for s in (ours, restored))  # fmt: skip
    assert mine == pytest.approx(other, abs=0.5)
    assert len(ours) == pytest.approx(len(paper), rel=0.03)
