"""Example: python -m benchmarks.avc_prepare --videos=VIDEOS

Measures clips at the paper's setting: bytes per clip, tokens per clip with 1,024 BPE entries, and
the overhead of preparation compared with the bare work on the same files in the same run: decode,
scale and encode with PyAV on all cores. Clips shorter than 5 seconds are kept, as by the paper's
command. Writes benchmarks/results/avc_prepare.json.
"""

from __future__ import annotations

import concurrent.futures
import json
import multiprocessing
import pathlib
import shutil
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
from absl import app, flags

from benchmarks.cost import Cost, now, overhead, since
from data_pipelines.prepare import prepare
from data_pipelines.representations.tokenizer import load_tokenizer, train_bpe
from data_pipelines.shards.reader import Shards
from data_pipelines.utils.cpus import num_cpus

RESULTS = pathlib.Path(__file__).parent / "results" / "avc_prepare.json"
OPTIONS = dict(name="avc", min_frames=1)
_X264 = (
    "qp=37:slice-max-mbs=1:bframes=0:trellis=0:me=dia:threads=1:subme=0:psy=0:mixed-refs=0:"
    "fast-pskip=0:partitions=none:ref=3:cpu-independent=1"
)
_SIZE, _FPS, _FRAMES = (256, 144), 3, 15

_VIDEOS = flags.DEFINE_string("videos", None, "Folder of video files.", required=True)
_NUMBER = flags.DEFINE_integer("number", 138, "Files per pass, by repeating the given ones.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Passes of each kind, alternating.")
_VOCAB = flags.DEFINE_integer("vocab_size", 1024, "Entries of the BPE model.")


def main(_: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        result: dict[str, Any] = _measure_sizes(_VIDEOS.value, folder / "sizes")
        paths = _repeated(pathlib.Path(_VIDEOS.value), folder / "videos", _NUMBER.value)
        bare, prepared = [], []
        for number in range(_REPEATS.value):
            bare.append(_time_bare(paths))
            prepared.append(_time_prepare(folder, number))
            print(f"pass {number}: bare {_format(bare[-1])}; prepare {_format(prepared[-1])}")
    result |= {
        "videos": len(paths),
        "cores": num_cpus(),
        "pyav": av.__version__,
        "bare": [cost._asdict() for cost in bare],
        "prepare": [cost._asdict() for cost in prepared],
        "overhead": overhead(bare, prepared, "seconds"),
        # Less affected by other load on the machine.
        "overhead_in_cpu_time": overhead(bare, prepared, "cpu_seconds"),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def _format(cost: Cost) -> str:
    return f"{cost.seconds:.1f} s ({cost.cpu_seconds:.1f} s of CPU time)"


def _measure_sizes(videos: str, out: pathlib.Path) -> dict[str, Any]:
    """Bytes and tokens per clip. The BPE model is trained on the same clips, which favours it."""
    shards = Shards(prepare(source=f"folder:{videos}", representation=OPTIONS, out=out), "train")
    clips = [tokens.astype("u1").tobytes() for tokens in shards.read(range(len(shards)))]
    frames = [len(shards.representation.decode(np.frombuffer(c, np.uint8))) for c in clips]
    whole = [frame == _FRAMES for frame in frames]
    model = out / "tokenizer.model"
    model.write_bytes(train_bpe(clips, _VOCAB.value))
    bpe = load_tokenizer(str(model), 0)
    sizes = np.array([len(clip) for clip in clips])
    tokens = np.array([len(bpe.encode(clip)) for clip in clips])
    return {
        "clips": len(clips),
        "whole_clips": int(np.sum(whole)),
        "bytes_per_whole_clip": float(sizes[whole].mean()),
        "largest_clip_bytes": int(sizes.max()),
        "bpe_vocab_size": bpe.vocab_size,
        "bpe_tokens_per_whole_clip": float(tokens[whole].mean()),
        "bpe_tokens_per_byte": float(tokens.sum() / sizes.sum()),
    }


def _repeated(videos: pathlib.Path, folder: pathlib.Path, number: int) -> list[str]:
    """Copies the files under new names, repeating them to reach `number`."""
    originals = sorted(path for path in videos.iterdir() if path.suffix in (".mp4", ".mkv"))
    if not originals:
        raise SystemExit(f"{videos} has no .mp4 or .mkv file; --videos is a folder of video files")
    folder.mkdir()
    paths = []
    for index in range(number):
        original = originals[index % len(originals)]
        path = folder / f"{index:06}{original.suffix}"
        shutil.copyfile(original, path)
        paths.append(str(path))
    return paths


def _time_prepare(folder: pathlib.Path, number: int) -> Cost:
    """The whole of `prepare`: starting workers, listing, encoding, writing the manifest."""
    out = folder / f"shards{number}"
    began = now()
    prepare(source=f"folder:{folder / 'videos'}", representation=OPTIONS, out=out)
    cost = since(began)
    shutil.rmtree(out)
    return cost


def _time_bare(paths: list[str]) -> Cost:
    # One part per core from the start, so that no process waits for work.
    parts = [paths[core :: num_cpus()] for core in range(num_cpus())]
    began = now()
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(num_cpus(), context) as pool:
        list(pool.map(_encode_files, parts))
    return since(began)


def _encode_files(paths: list[str]) -> int:
    return sum(_encode_file(path) for path in paths)


def _encode_file(path: str) -> int:
    """Decodes, scales and pads with FFmpeg's filters, and encodes; returns bytes of all clips."""
    size = 0
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        graph = av.filter.Graph()
        graph.threads = 1
        width, height = _SIZE
        scale = f"{width}:{height}:force_original_aspect_ratio=decrease:flags=bicubic"
        graph.link_nodes(
            graph.add_buffer(template=stream),
            graph.add("scale", f"{scale}+accurate_rnd+full_chroma_int+bitexact"),
            graph.add("format", "yuv420p"),
            graph.add("pad", f"{width}:{height}:(ow-iw)/2:(oh-ih)/2"),
            graph.add("buffersink"),
        ).configure()
        clip, due = [], 0
        for frame in container.decode(stream):
            if frame.time is None or frame.time * _FPS < due - 0.5:
                continue
            due += 1
            graph.push(frame)
            clip.append(graph.pull())
            if len(clip) == _FRAMES:
                size += _encode(clip)
                clip = []
        return size + (_encode(clip) if clip else 0)


def _encode(clip: list[Any]) -> int:
    encoder: Any = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = *_SIZE, "yuv420p"
    encoder.time_base, encoder.framerate, encoder.thread_count = Fraction(1, _FPS), _FPS, 1
    encoder.options = {"x264-params": _X264, "profile": "baseline"}
    size = 0
    for index, frame in enumerate(clip):
        frame.pts, frame.time_base, frame.pict_type = index, Fraction(1, _FPS), 0
        size += sum(packet.size for packet in encoder.encode(frame))
    return size + sum(packet.size for packet in encoder.encode(None))


if __name__ == "__main__":
    app.run(main)
