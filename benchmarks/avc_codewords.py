"""Example: python -m benchmarks.avc_codewords --videos=VIDEOS

Tokens of H.264 clips at the paper's setting (256x144, 15 frames, one macroblock per slice): bytes,
BPE over bytes, code words, and BPE over code words, trained on the clips that are counted, as
`benchmarks.avc_prepare` does. Counted are clips of all 15 frames. Time is processor time per clip
for reading a stream as code words and writing it back, of whole clips, with numba and without.
Writes benchmarks/results/avc_codewords.json.
"""

from __future__ import annotations

import json
import os
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import app, flags

from data_pipelines.representations.avc.codewords.streams import Streams
from data_pipelines.representations.avc.representation import AvcRepresentation
from data_pipelines.representations.codewords import compiled
from data_pipelines.representations.codewords.tokenizer import CodewordTokenizer
from data_pipelines.representations.tokenizer import BpeTokenizer, ByteTokenizer, Tokenizer

RESULTS = pathlib.Path(__file__).parent / "results" / "avc_codewords.json"
BYTE_ENTRIES = 1024
WORD_ENTRIES = (1024, 2048, 4096)
ROUNDS = 3

_VIDEOS = flags.DEFINE_string("videos", None, "Folder of video files.", required=True)
_TIME_ONLY = flags.DEFINE_bool("time_only", False, "Print the processor time, without numba.")


def main(_: Sequence[str]) -> None:
    representation = AvcRepresentation(min_frames=1)
    clips, whole = _clips(representation, pathlib.Path(_VIDEOS.value))
    if _TIME_ONLY.value:
        print(json.dumps(_time(representation.streams, whole)))
        return
    found = {
        "bytes": _tokens(ByteTokenizer(), whole),
        f"BPE over bytes, {BYTE_ENTRIES:,}": _tokens(
            BpeTokenizer(representation.train_tokenizer(clips, BYTE_ENTRIES, "bpe")), whole
        ),
        "code words": _tokens(CodewordTokenizer(representation.streams), whole),
    }
    for entries in WORD_ENTRIES:
        model = representation.train_tokenizer(clips, entries, "codewords")
        tokenizer = CodewordTokenizer(representation.streams, model)
        found[f"code words, {entries:,}"] = _tokens(tokenizer, whole)
    times: dict[str, Any] = {"without numba": _time_without_numba()}
    if compiled.has_numba():
        times["with numba"] = _time(representation.streams, whole)
    result = {
        "command": "python -m benchmarks.avc_codewords --videos=VIDEOS",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, numpy {np.__version__}",
        "clips": len(clips),
        "whole_clips": len(whole),
        "bytes_per_whole_clip": float(np.mean([len(clip) for clip in whole])),
        "tokens_per_whole_clip": found,
        "ms_per_whole_clip": times,
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def _clips(
    representation: AvcRepresentation, folder: pathlib.Path
) -> tuple[list[bytes], list[bytes]]:
    """The streams of all clips, and of those with all frames."""
    clips, whole = [], []
    for path in sorted(folder.iterdir()):
        for media in representation.open(path.read_bytes()):
            stream = representation.tokenizer.decode(representation.encode(media))
            clips.append(stream)
            if len(media) == representation.frames:
                whole.append(stream)
    if not whole:
        raise ValueError(f"found no clip of {representation.frames} frames in {folder}")
    return clips, whole


def _tokens(tokenizer: Tokenizer, clips: list[bytes]) -> dict[str, float]:
    counts = [len(tokenizer.encode(clip)) for clip in clips]
    return {
        "mean": float(np.mean(counts)),
        "99 %": float(np.percentile(counts, 99)),
        "max": float(max(counts)),
    }


def _time(streams: Streams, clips: list[bytes]) -> dict[str, float]:
    """Milliseconds of processor time per clip: the best of the rounds."""
    streams.write(streams.read(clips[0]))  # compiles
    best = {"read": float("inf"), "write": float("inf")}
    for _ in range(ROUNDS):
        begin = time.process_time()
        letters = [streams.read(clip) for clip in clips]
        middle = time.process_time()
        written = [streams.write(each) for each in letters]
        end = time.process_time()
        if written != clips:
            raise AssertionError("code words did not give the bytes back")
        for name, seconds in (("read", middle - begin), ("write", end - middle)):
            best[name] = min(best[name], seconds / len(clips) * 1e3)
    return best


def _time_without_numba() -> dict[str, float]:
    """The same in a process in which numba is not used."""
    code = (
        "import data_pipelines.representations.codewords.compiled as compiled\n"
        "compiled.has_numba = lambda: False\n"
        "import runpy\n"
        "runpy.run_module('benchmarks.avc_codewords', run_name='__main__')\n"
    )
    arguments = [f"--videos={_VIDEOS.value}", "--time_only"]
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True
    )
    return json.loads(run.stdout.splitlines()[-1])


if __name__ == "__main__":
    app.run(main)
