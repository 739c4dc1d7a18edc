"""Validation compared with the reference test `is_canonical`, and the errors it reports."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest

from data_pipelines.representations import make
from data_pipelines.representations.jpeg import segments
from data_pipelines.representations.jpeg.coefficients import is_canonical
from tests.data_pipelines.representations.jpeg.mutations import mutations, photos, synthetic
from tests.data_pipelines.representations.machines import names

# Every sampling, every strip mode, and restart intervals that do and do not divide the MCUs.
SETTINGS = [
    dict(size=48),
    dict(size=64, restart_interval=0),
    dict(size=(70, 41), quality=60, subsampling="4:2:2", restart_interval=3, strip="header"),
    dict(size=40, quality=75, subsampling="4:4:4", restart_interval=7, strip="none"),
    dict(size=32, mode="L", restart_interval=2, strip="header"),
    dict(size=(17, 23), mode="L", quality=100, restart_interval=0, strip="header"),
    dict(size=None, quality=50, restart_interval=1),
    dict(size=None, mode="L", quality=10, restart_interval=0, strip="none"),
]


def streams_of(representation, count=8):
    images = [synthetic(48 + 5 * i, 40 + 3 * i, i) for i in range(count)]
    if representation.size is not None:
        images += photos(count)
    return [representation.encode(image).astype(np.uint8).tobytes() for image in images]


def tokens_of(stream):
    return np.frombuffer(stream, np.uint8).astype(np.uint16)


def disagreements(settings, count, seed):
    """(streams on which validation and `is_canonical` differ, number of valid streams)."""
    representation = make("jpeg", **settings)
    mutated = list(mutations(streams_of(representation), count, seed))
    results = representation.validate_batch([tokens_of(stream) for stream in mutated])
    wrong, valid = [], 0
    for stream, result in zip(mutated, results, strict=True):
        file = representation.to_bytes(tokens_of(stream))
        canonical = is_canonical(file, representation.format, representation.fixed_size)
        valid += canonical
        if canonical != result.valid:
            wrong.append((stream.hex(), result))
    return wrong, valid


@pytest.mark.parametrize("settings", SETTINGS, ids=names)
def test_validation_agrees_with_the_reference(settings):
    wrong, valid = disagreements(settings, 400, seed=1)
    assert not wrong, wrong[0]
    assert 20 <= valid <= 380, "valid and invalid streams are needed"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("settings", [*SETTINGS, dict(size=128), dict(size=256)], ids=names)
def test_validation_agrees_with_the_reference_on_many_streams(settings):
    wrong, _ = disagreements(settings, 10_000, seed=2)
    assert not wrong, wrong[0]


@pytest.mark.parametrize("settings", SETTINGS[:2] + SETTINGS[4:5], ids=names)
def test_segments_processed_alone_and_together_give_equal_results(settings, monkeypatch):
    representation = make("jpeg", **settings)
    mutated = list(map(tokens_of, mutations(streams_of(representation), 300, seed=3)))
    monkeypatch.setattr(segments, "MIN_BATCH", 0)
    together = representation.validate_batch(mutated)
    monkeypatch.setattr(segments, "MIN_BATCH", 1 << 30)
    assert representation.validate_batch(mutated) == together
    monkeypatch.undo()
    assert [representation.validate(tokens) for tokens in mutated] == together


@pytest.mark.skipif(shutil.which("jpegtran") is None, reason="jpegtran is not installed")
@pytest.mark.parametrize("settings", [SETTINGS[0], SETTINGS[1], SETTINGS[4]], ids=names)
def test_jpegtran_rewrites_exactly_the_valid_files_unchanged(settings, tmp_path):
    # Sizes are multiples of the MCU: jpegtran rewrites blocks outside the image. It keeps DC
    # values in 16 bits, which the few damaged differences do not exceed.
    representation = make("jpeg", **settings)
    restart = representation.restart_interval
    command = ["jpegtran", "-copy", "all", *(["-restart", f"{restart}B"] if restart else [])]
    mutated = list(mutations(streams_of(representation), 300, seed=4))
    results = representation.validate_batch([tokens_of(stream) for stream in mutated])
    for stream, result in zip(mutated, results, strict=True):
        file = representation.to_bytes(tokens_of(stream))
        written = subprocess.run(command, input=file, capture_output=True, check=False).stdout
        assert (written == file) == result.valid, (result, stream.hex())


# One grey block of 8x8, and two of them side by side with and without a restart marker between,
# written bit by bit. Codes of T.81 Annex K, tables K.3 and K.5.
BLOCK = make("jpeg", size=8, mode="L", restart_interval=0, strip="header")
PAIR = make("jpeg", size=(16, 8), mode="L", restart_interval=1, strip="header")
UNMARKED_PAIR = make("jpeg", size=(16, 8), mode="L", restart_interval=0, strip="header")
DC0, DC11 = "00", "111111110"
EOB, ZRL = "1010", "11111111001"
ONE_AFTER_14, ONE_AFTER_15 = "1111111111101011" + "1", "1111111111110101" + "1"
EMPTY = DC0 + EOB
EOI = b"\xff\xd9"


def packed(bits, stuff=True):
    """Bits as bytes, padded with ones, FF stuffed."""
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big") if bits else b""
    return data.replace(b"\xff", b"\xff\x00") if stuff else data


VALID = {
    "an empty block": (BLOCK, packed(EMPTY) + EOI),
    "the largest difference": (BLOCK, packed(DC11 + "1" * 11 + EOB) + EOI),
    "the last coefficient, no EOB": (BLOCK, packed(DC0 + 3 * ZRL + ONE_AFTER_14) + EOI),
    "a marker": (PAIR, packed(EMPTY) + b"\xff\xd0" + packed(EMPTY) + EOI),
    "two MCUs in one segment": (UNMARKED_PAIR, packed(2 * EMPTY) + EOI),
}


@pytest.mark.parametrize("case", VALID)
def test_streams_of_an_encoder_are_valid(case):
    representation, stream = VALID[case]
    result = representation.validate(tokens_of(stream))
    assert result.valid and not result.error
    assert result.units == result.expected
    file = representation.to_bytes(tokens_of(stream))
    assert is_canonical(file, representation.format, representation.fixed_size)


INVALID = {
    "nothing at all": (BLOCK, b"", 0, "byte 0: the end of the stream cuts MCU 0 short"),
    "EOI alone": (BLOCK, EOI, 0, "byte 0: marker FFD9 cuts MCU 0 short"),
    "no EOI": (BLOCK, packed(EMPTY), 1, "byte 1: found the end of the stream after MCU 0"),
    "half an EOI": (BLOCK, packed(EMPTY) + b"\xff", 1, "byte 1: found an FF that ends the stream"),
    "something after EOI": (BLOCK, packed(EMPTY) + EOI + b"x", 1, "byte 3: 1 bytes are left over"),
    "EOI twice": (BLOCK, packed(EMPTY) + EOI + EOI, 1, "byte 3: 2 bytes are left over after EOI"),
    "an undefined code": (BLOCK, packed("1" * 9) + EOI, 0, "an undefined Huffman code, in MCU 0"),
    "zeros before EOB": (BLOCK, packed(DC0 + ZRL + EOB) + EOI, 0, "a run of sixteen zeros right"),
    "zeros to the end": (BLOCK, packed(DC0 + 4 * ZRL) + EOI, 0, "a coefficient past index 63"),
    "a coefficient past the end": (
        BLOCK,
        packed(DC0 + 3 * ZRL + ONE_AFTER_15) + EOI,
        0,
        "a coefficient past index 63, in MCU 0",
    ),
    "EOB after the last coefficient": (
        BLOCK,
        packed(DC0 + 3 * ZRL + ONE_AFTER_14 + EOB) + EOI,
        1,
        "a padding bit is 0, expected 1, after MCU 0",
    ),
    "zero padding": (BLOCK, packed(EMPTY + "00") + EOI, 1, "byte 0: a padding bit is 0"),
    "a byte of padding": (BLOCK, packed(EMPTY) + b"\xff\x00" + EOI, 1, "byte 1: bytes are left"),
    "a fill byte": (BLOCK, packed(EMPTY) + b"\xff" + EOI, 1, "byte 1: found marker FFFF"),
    "FF not stuffed": (
        BLOCK,
        packed(DC11 + "1" * 11 + EOB, stuff=False) + EOI,
        0,
        "byte 0: marker FF7F cuts MCU 0 short",
    ),
    "one block too many": (BLOCK, packed(2 * EMPTY) + EOI, 1, "a padding bit is 0"),
    "one block too few": (UNMARKED_PAIR, packed(EMPTY) + EOI, 1, "byte 1: marker FFD9 cuts MCU 1"),
    "no marker": (PAIR, packed(2 * EMPTY) + EOI, 1, "byte 0: a padding bit is 0"),
    "a wrong marker": (
        PAIR,
        packed(EMPTY) + b"\xff\xd1" + packed(EMPTY) + EOI,
        1,
        "byte 1: found marker FFD1 after MCU 0, expected marker FFD0",
    ),
    "a marker before EOI": (
        PAIR,
        packed(EMPTY) + b"\xff\xd0" + packed(EMPTY) + b"\xff\xd1" + EOI,
        2,
        "byte 4: found marker FFD1 after MCU 1, expected marker FFD9",
    ),
    "EOI for a marker": (PAIR, packed(EMPTY) + EOI, 1, "byte 1: found marker FFD9 after MCU 0"),
}


@pytest.mark.parametrize("case", INVALID)
def test_errors_have_offset_and_kind(case):
    representation, stream, units, error = INVALID[case]
    result = representation.validate(tokens_of(stream))
    assert not result.valid
    assert error in result.error
    assert result.units == units
    file = representation.to_bytes(tokens_of(stream))
    assert not is_canonical(file, representation.format, representation.fixed_size)


def test_errors_have_the_mcu_of_the_damage():
    representation = make("jpeg", size=256)
    tokens = representation.encode(synthetic(256, 256, 1))
    stream = bytearray(tokens.astype(np.uint8))
    marker = [i for i in range(59, len(stream)) if stream[i] == 0xFF and stream[i + 1] >= 0xD0]
    stream[marker[100] + 1] ^= 1
    result = representation.validate(tokens_of(stream))
    assert (result.units, result.expected) == (101, 256)
    assert f"byte {marker[100]}: found marker FFD5 after MCU 100" in result.error


def test_a_wrong_header_is_reported_with_its_offset():
    representation = make("jpeg", size=32)
    tokens = representation.encode(synthetic(32, 32, 1))
    tokens[20] = 7
    result = representation.validate(tokens)
    assert result.error == "byte 20: found 07 in the header, expected FF"
    assert (result.units, result.expected) == (0, 4)


@pytest.mark.parametrize("strip", ["none", "tables"])
def test_expected_units_follow_the_size_in_the_header(strip):
    representation = make("jpeg", size=None, strip=strip)
    tokens = representation.encode(synthetic(40, 20, 1))
    assert representation.validate(tokens).expected == 6
    at = representation.format.header(strip).size_at
    tokens[at + 3] = 50  # wider: four MCUs a row
    assert representation.validate(tokens).expected == 8
    assert "found marker FFD9 after MCU 5" in representation.validate(tokens).error
    tokens[at : at + 4] = 0
    assert "the header states a side of 0 pixels" in representation.validate(tokens).error


def test_special_tokens_are_reported_with_their_position():
    representation = make("jpeg", size=64, num_labels=3)
    tokens = representation.encode(synthetic(64, 64, 1))
    for token in (representation.bos, representation.eos, representation.label_token(2), 60_000):
        for position in (0, 70, len(tokens)):
            result = representation.validate(np.insert(tokens, position, token))
            assert not result.valid
            assert f"token {token}" in result.error and f"position {position}" in result.error
    assert result.units == 16
    damaged = np.insert(tokens, 300, representation.eos)
    damaged[61] ^= 255
    assert "token" not in representation.validate(damaged).error, "the first damage is reported"


@pytest.mark.parametrize("tokens", [np.zeros(3), np.zeros((2, 2), np.int32), np.array([], int)])
def test_tokens_of_wrong_type_are_invalid(tokens):
    assert not make("jpeg", size=8).validate(tokens).valid


def test_an_empty_batch_gives_an_empty_list():
    assert make("jpeg").validate_batch([]) == []


@pytest.mark.parametrize("strip", ["tables", "header"])
def test_noise_is_invalid(strip):
    rng = np.random.default_rng(0)
    representation = make("jpeg", size=64, strip=strip)
    header = representation.format.header(strip).at(64, 64)
    documents = [tokens_of(header + rng.bytes(int(rng.integers(0, 500)))) for _ in range(200)]
    assert not any(result.valid for result in representation.validate_batch(documents))
