"""Video files become clips of frames, or raise VideoError with a reason."""

from __future__ import annotations

import io
import shutil
import subprocess
from fractions import Fraction

import av
import numpy as np
import pytest

from data_pipelines.media.videos import VideoError, fitted_size, read_clips


def bars(width=64, height=48, frames=20):
    """Frames whose grey value grows by 8; the left quarter is white. uint8 [T, h, w, 3]."""
    pixels = np.zeros((frames, height, width, 3), np.uint8)
    pixels += (8 * np.arange(frames, dtype=np.uint8))[:, None, None, None]
    pixels[:, :, : width // 4] = 255
    return pixels


def video(pixels, *, rate=10, codec="libx264", container="mp4", pix_fmt="yuv420p", times=None,
          options=None, mux=None, aspect=None, audio=False, interlaced=False):  # fmt: skip
    """A video file of frames; `times` are in 1/1000 s."""
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=mux or {}) as out:
        default = {"qp": "8"} if codec == "libx264" else {}
        stream = out.add_stream(codec, rate=rate, options=options or default)
        stream.height, stream.width = pixels.shape[1:3]
        stream.pix_fmt = pix_fmt
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if interlaced:
            stream.codec_context.flags |= 1 << 18 | 1 << 29
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if audio:
            sound = out.add_stream("aac", rate=8000)
            quiet = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
            quiet.sample_rate = 8000
            out.mux(sound.encode(quiet))
            out.mux(sound.encode(None))
        for index, frame in enumerate(pixels):
            shown = av.VideoFrame.from_ndarray(frame, format="rgb24")
            if times is not None:
                shown.pts, shown.time_base = times[index], Fraction(1, 1000)
            out.mux(stream.encode(shown))
        out.mux(stream.encode(None))
    return file.getvalue()


def clips_of(data, size=(64, 48), fps=(5, 1), frames=4, min_frames=4, **limits):
    clips = read_clips(data, size=size, fps=fps, frames=frames, min_frames=min_frames, **limits)
    return [np.stack([f.to_ndarray(format="rgb24") for f in clip]) for clip in clips]


def greys(clips):
    """The grey value right of the bar, by clip and frame, in steps of 8: the frame's number."""
    return [[round(float(frame[:, 40:60].mean()) / 8) for frame in clip] for clip in clips]


def test_clips_are_cut_by_time_and_the_rest_is_left_out():
    data = video(bars(frames=21), audio=True)
    # FFmpeg's filter `fps` takes the last frame that rounds to a moment, 0.2 s apart here.
    assert greys(clips_of(data)) == [[0, 2, 4, 6], [8, 10, 12, 14]]
    assert greys(clips_of(data, min_frames=3)) == [[0, 2, 4, 6], [8, 10, 12, 14], [16, 18, 20]]


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg command line")
@pytest.mark.parametrize("fps", ["3", "5", "7", "25"])
def test_frames_are_those_of_the_filter_fps(tmp_path, fps):
    data = video(bars(frames=20), times=[0, 90, 130, 390, 400, 410, 700, *range(800, 2100, 100)])
    source = tmp_path / "in.mp4"
    source.write_bytes(data)
    command = f"ffmpeg -v error -i {source} -vf fps={fps} -f rawvideo -pix_fmt rgb24 -"
    raw = subprocess.run(command.split(), check=True, capture_output=True, timeout=60).stdout
    theirs = np.frombuffer(raw, np.uint8).reshape(-1, 48, 64, 3)
    (ours,) = clips_of(data, fps=(int(fps), 1), frames=1000, min_frames=1)
    # The last sample of this file has no duration: here it is shown for as long as the others.
    assert greys([ours[: len(theirs)]]) == greys([theirs])
    assert len(theirs) <= len(ours) <= len(theirs) + int(fps) // 10 + 1


def test_a_low_rate_repeats_frames():
    data = video(bars(frames=4), times=[0, 1000, 2000, 3000], rate=1)
    (clip,) = clips_of(data, fps=(2, 1), frames=6, min_frames=6)
    assert greys([clip]) == [[0, 1, 1, 2, 2, 3]] or greys([clip]) == [[0, 0, 1, 1, 2, 2]]


@pytest.mark.parametrize(
    ("codec", "container", "pix_fmt"),
    [
        ("libx264", "mp4", "yuv444p"),
        ("libx264", "matroska", "yuv420p10le"),
        ("libx264", "mpegts", "yuvj420p"),
        ("mjpeg", "avi", "yuvj422p"),
        ("ffv1", "matroska", "bgr0"),
        ("mpeg4", "mov", "yuv420p"),
        ("gif", "gif", "rgb8"),
    ],
)
def test_pixel_formats_and_containers_look_alike(codec, container, pix_fmt):
    options = {"qp": "8"} if codec == "libx264" else {"q": "2"} if codec != "gif" else {}
    pixels = bars()
    clips = clips_of(video(pixels, codec=codec, container=container, pix_fmt=pix_fmt,
                           options=options))  # fmt: skip
    assert len(clips) == 2
    off = np.abs(clips[0].astype(int) - pixels[[0, 2, 4, 6]])
    assert off.mean() < (20 if codec == "gif" else 5)


@pytest.mark.parametrize(
    ("shape", "size"),
    [((640, 480), (192, 144)), ((854, 480), (256, 144)), ((480, 854), (81, 144)),
     ((1280, 536), (256, 107)), ((10_000, 10), (256, 1))],
)  # fmt: skip
def test_shapes_are_fitted_as_the_filter_scale_fits_them(shape, size):
    assert fitted_size((Fraction(shape[0]), Fraction(shape[1])), (256, 144)) == size


def test_wide_pixels_are_shown_wide_and_the_rest_is_black():
    data = video(bars(32, 48), aspect=Fraction(2))
    (clip, _) = clips_of(data)
    assert clip[0][24, 4].mean() > 240 and clip[0][2, 2].mean() > 240, "no bars: 64 x 48 is shown"
    (clip, _) = clips_of(video(bars(64, 24)))
    assert clip[0][2].max() < 24 and clip[0][24, 4].mean() > 240, "bars above and below"


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg command line")
@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_turned_video_is_shown_as_ffmpeg_shows_it(tmp_path, degrees):
    source, turned = tmp_path / "in.mp4", tmp_path / "out.mp4"
    source.write_bytes(video(bars(64, 48)))
    command = f"ffmpeg -v error -i {source} -c copy -metadata:s:v rotate={degrees} {turned}"
    subprocess.run(command.split(), check=True, timeout=60)
    command = f"ffmpeg -v error -i {turned} -vf fps=5 -f rawvideo -pix_fmt rgb24 -"
    raw = subprocess.run(command.split(), check=True, capture_output=True, timeout=60).stdout
    size = (64, 48) if degrees == 180 else (48, 64)
    theirs = np.frombuffer(raw, np.uint8).reshape(-1, size[1], size[0], 3)
    (clip, _) = clips_of(turned.read_bytes(), size=size)
    assert np.abs(clip.astype(int) - theirs[:4]).mean() < 3
    assert np.abs(clip[:, ::-1, ::-1].astype(int) - theirs[:4]).mean() > 60, "not upside down"


def test_an_interlaced_frame_gives_its_first_field():
    pixels = bars()
    pixels[:, 1::2, 40:] = 255  # the second field has something else
    data = video(pixels, codec="mpeg2video", container="mpeg", rate=25, interlaced=True,
                 options={"q": "2", "qmin": "1", "flags": "+ildct+ilme"})  # fmt: skip
    with av.open(io.BytesIO(data)) as container:
        assert next(container.decode(video=0)).interlaced_frame
    (clip,) = clips_of(data, fps=(25, 1), frames=20, min_frames=1)
    assert clip[0][:, 44:60].mean() < 60


def broken(name):
    whole = video(bars())
    index = whole.rindex(b"moov") - 4
    return {
        "empty": b"",
        "noise": bytes(np.random.default_rng(0).integers(0, 256, 5000, np.uint8)),
        "no index": whole[:index],
        "text": b"#EXTM3U\n#EXTINF:5,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        "concat": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "short": video(bars(frames=3)),
    }[name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "the file is empty"),
        ("noise", "no supported video format"),
        ("no index", "without their index"),
        ("text", "no supported video format"),
        ("concat", "no supported video format"),
        ("short", r"2 frames at 5 .*0.4 s.* at least 4"),
    ],
)
def test_files_that_are_not_videos_are_refused(name, message):
    with pytest.raises(VideoError, match=message):
        clips_of(broken(name))


def test_audio_alone_is_named():
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        sound = out.add_stream("aac", rate=8000)
        quiet = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
        quiet.sample_rate = 8000
        out.mux(sound.encode(quiet))
        out.mux(sound.encode(None))
    with pytest.raises(VideoError, match=r"holds no video \(found: audio\)"):
        clips_of(file.getvalue())


def test_an_encrypted_video_is_named():
    key = {
        "encryption_scheme": "cenc-aes-ctr",
        "encryption_key": "76a6c65c5ea762046bd749a2e632ccbb",
        "encryption_kid": "a7e61c373e219033c21091fa607bf3b8",
    }
    with pytest.raises(VideoError, match="is encrypted"):
        clips_of(video(bars(), mux=key))


def test_a_large_or_long_video_is_refused_before_it_is_decoded(monkeypatch):
    class Undecodable:
        def __init__(self, container):
            self._container = container

        def __getattr__(self, name):
            return getattr(self._container, name)

        def decode(self, *_):
            pytest.fail("decoded")

    data, open_container = video(bars()), av.open
    monkeypatch.setattr(av, "open", lambda *args, **kw: Undecodable(open_container(*args, **kw)))
    with pytest.raises(VideoError, match="64 x 48 pixels, expected at most 3,000"):
        clips_of(data, max_pixels=3000)
    with pytest.raises(VideoError, match="lasts 2 s, expected at most 1 s"):
        clips_of(data, max_seconds=1)


def test_time_stamps_far_apart_are_damage_not_a_million_frames():
    data = video(bars(frames=4), times=[0, 100, 200, 3_000_000], container="matroska")
    with pytest.raises(VideoError, match="no frame for .* s after 0.* s"):
        clips_of(data)


def test_clips_before_the_damage_are_kept():
    data = bytearray(video(bars(frames=40), container="mpegts", options={"g": "1", "qp": "8"}))
    cut = bytes(data[: len(data) * 3 // 4])
    found = []
    reader = read_clips(cut, size=(64, 48), fps=(5, 1), frames=4, min_frames=4)
    try:
        for clip in reader:
            found.append(clip)
    except VideoError:
        pass
    assert 2 <= len(found) <= 4


def test_a_change_of_size_is_fitted():
    small, large = bars(32, 24, 12), bars(64, 48, 12)
    data = b"".join(
        video(p, container="h264", options={"qp": "8"}, rate=25) for p in (small, large)
    )
    (clip,) = clips_of(data, fps=(25, 1), frames=24, min_frames=20)
    assert clip.shape[1:] == (48, 64, 3)
    assert clip[0][24, 4].mean() > 240 and clip[-1][24, 4].mean() > 240
