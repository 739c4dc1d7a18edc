"""Streams with damaged macroblocks, and FFmpeg's judgement on them with error detection on."""

from __future__ import annotations

import av
import numpy as np

from data_pipelines.media import libav
from data_pipelines.representations.avc import bitstream, decoder, validity


def noise(representation, seed):
    """A clip of noise that moves, with cuts: IDR pictures, I pictures that are none, P pictures."""
    rng = np.random.default_rng(seed)
    width, height = representation.size
    shape = height * 3 // 2, width
    frames = []
    picture = rng.integers(0, 256, shape, np.uint8)
    for place in range(representation.frames):
        if rng.random() < 0.2:
            picture = rng.integers(0, rng.choice([2, 256]), shape, np.uint8)
        if rng.random() < 0.8:  # else P slices of nothing but skipped macroblocks
            picture = np.roll(picture, place, 1)
        frames.append(av.VideoFrame.from_ndarray(picture, format="yuv420p"))
    return representation.tokenizer.decode(representation.encode(frames))


def walked(representation, stream):
    """The structural walk of a stream, with its slices."""
    return validity.validate_structure(
        stream,
        representation.format,
        headers=representation.strip == "none",
        min_frames=representation.min_clip_frames,
        max_frames=representation.frames,
    )


def escaped(data):
    """Emulation prevention put in (7.4.1)."""
    out, zeros = bytearray(), 0
    for byte in data:
        if zeros == 2 and byte < 4:
            out.append(3)
            zeros = 0
        out.append(byte)
        zeros = zeros + 1 if byte == 0 else 0
    return bytes(out)


def with_slice(stream, piece, data):
    """The stream with another NAL unit, not yet escaped, for one of its slices."""
    return stream[: piece.nal.payload] + escaped(data) + stream[piece.nal.end :]


def damaged(representation, stream, rng):
    """The stream with some bits of one slice's data flipped, overwritten, put in or removed."""
    slices = walked(representation, stream).slices
    while True:
        piece = slices[rng.integers(len(slices))]
        bits = np.unpackbits(np.frombuffer(piece.data, np.uint8))
        stop = len(bits) - 1 - int(bits[::-1].argmax())
        at = int(rng.integers(piece.start, stop + 1))
        count = int(rng.integers(1, 9))
        match rng.integers(5):
            case 0:
                bits[at] ^= 1
            case 1:
                bits[at : at + count] = rng.integers(0, 2, len(bits[at : at + count]))
            case 2:
                bits = np.insert(bits, at, rng.integers(0, 2, count))
            case 3:
                bits = np.delete(bits, slice(at, at + count))
            case 4:
                bits[at : at + rng.integers(1, 40)] = rng.integers(0, 2)
        data = np.packbits(bits).tobytes().rstrip(b"\0")
        if 8 * len(data) > piece.start + 8:
            return with_slice(stream, piece, data)


def complaints(representation, stream):
    """What FFmpeg's decoder has against a stream: its error lines, missing and corrupt frames."""
    context = av.CodecContext.create("h264", "r")
    context.thread_count = 1
    context.options = {"err_detect": "bitstream+buffer+careful+compliant+aggressive"}
    context.extradata = representation.format.constants.prefix
    found, frames = [], 0
    with libav.messages() as logs:
        for unit in [*decoder.access_units(stream), None]:
            try:
                for frame in context.decode(None if unit is None else av.Packet(unit)):
                    frames += 1
                    if frame.is_corrupt:
                        found.append("a corrupt frame")
            except av.FFmpegError as error:
                found.append(str(error))
    expected = sum(
        stream[nal.payload + 1] >= 0x80
        for nal in bitstream.nals(stream)
        if stream[nal.payload] & 31 in (bitstream.SLICE, bitstream.IDR)
    )
    if frames != expected:
        found.append(f"{frames} of {expected} frames")
    return libav.errors(logs) + found
