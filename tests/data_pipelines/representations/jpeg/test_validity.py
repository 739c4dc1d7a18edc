"""The walker against the oracle, and what each kind of damage is called."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest

from data_pipelines.representations import make
from data_pipelines.representations.jpeg import segments
from data_pipelines.representations.jpeg.coefficients import is_canonical
from tests.data_pipelines.representations.jpeg.mutations import mutations, photos, synthetic

# Together they have every sampling, every way to strip, and intervals that do and do not divide.
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


def names(settings):
    return "-".join(str(value) for value in settings.values())


def streams_of(representation, count=8):
    images = [synthetic(48 + 5 * i, 40 + 3 * i, i) for i in range(count)]
    if representation.size is not None:
        images += photos(count)
    return [representation.encode(image).astype(np.uint8).tobytes() for image in images]


def tokens_of(stream):
    return np.frombuffer(stream, np.uint8).astype(np.uint16)


def disagreements(settings, count, seed):
    """Mutated streams on which walker and oracle differ, and how many were valid."""
    representation = make("jpeg", **settings)
    mutated = list(mutations(streams_of(representation), count, seed))
    judged = representation.validate_batch([tokens_of(stream) for stream in mutated])
    wrong, valid = [], 0
    for stream, judgement in zip(mutated, judged, strict=True):
        file = representation.to_bytes(tokens_of(stream))
        canonical = is_canonical(file, representation.format, representation.fixed_size)
        valid += canonical
        if canonical != judgement.valid:
            wrong.append((stream.hex(), judgement))
    return wrong, valid


@pytest.mark.parametrize("settings", SETTINGS, ids=names)
def test_walker_and_oracle_agree_on_mutated_files(settings):
    wrong, valid = disagreements(settings, 400, seed=1)
    assert not wrong, wrong[0]
    assert 20 <= valid <= 380, "both kinds of streams are needed to tell anything"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("settings", [*SETTINGS, dict(size=128), dict(size=256)], ids=names)
def test_walker_and_oracle_agree_on_a_hundred_thousand_mutated_files(settings):
    wrong, _ = disagreements(settings, 10_000, seed=2)
    assert not wrong, wrong[0]


@pytest.mark.parametrize("settings", SETTINGS[:2] + SETTINGS[4:5], ids=names)
def test_segments_walked_alone_and_together_are_judged_alike(settings, monkeypatch):
    representation = make("jpeg", **settings)
    mutated = list(map(tokens_of, mutations(streams_of(representation), 300, seed=3)))
    monkeypatch.setattr(segments, "_FEW", 0)
    together = representation.validate_batch(mutated)
    monkeypatch.setattr(segments, "_FEW", 1 << 30)
    assert representation.validate_batch(mutated) == together
    monkeypatch.undo()
    assert [representation.validate(tokens) for tokens in mutated] == together


@pytest.mark.skipif(shutil.which("jpegtran") is None, reason="jpegtran is not installed")
@pytest.mark.parametrize("settings", [SETTINGS[0], SETTINGS[1], SETTINGS[4]], ids=names)
def test_jpegtran_gives_exactly_valid_files_back(settings, tmp_path):
    # Sizes are multiples of the MCU: jpegtran rewrites blocks outside the image. It also keeps DC
    # values in 16 bits, which so few damaged differences do not leave.
    representation = make("jpeg", **settings)
    restart = representation.restart_interval
    command = ["jpegtran", "-copy", "all", *(["-restart", f"{restart}B"] if restart else [])]
    mutated = list(mutations(streams_of(representation), 300, seed=4))
    judged = representation.validate_batch([tokens_of(stream) for stream in mutated])
    for stream, judgement in zip(mutated, judged, strict=True):
        file = representation.to_bytes(tokens_of(stream))
        written = subprocess.run(command, input=file, capture_output=True, check=False).stdout
        assert (written == file) == judgement.valid, (judgement, stream.hex())


# One grey block of 8x8, and two of them side by side with a restart marker between: small enough to
# write bit by bit. Codes of T.81 Annex K, tables K.3 and K.5.
BLOCK = make("jpeg", size=8, mode="L", restart_interval=0, strip="header")
PAIR = make("jpeg", size=(16, 8), mode="L", restart_interval=1, strip="header")
UNMARKED_PAIR = make("jpeg", size=(16, 8), mode="L", restart_interval=0, strip="header")
DC0, DC11 = "00", "111111110"
EOB, ZRL = "1010", "11111111001"
ONE_AFTER_14, ONE_AFTER_15 = "1111111111101011" + "1", "1111111111110101" + "1"
EMPTY = DC0 + EOB
EOI = b"\xff\xd9"


def packed(bits, stuff=True):
    """Bits as bytes, filled up with ones, FF stuffed."""
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
def test_what_an_encoder_may_write_is_valid(case):
    representation, stream = VALID[case]
    judgement = representation.validate(tokens_of(stream))
    assert judgement.valid and not judgement.error
    assert judgement.units == judgement.expected
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
def test_damage_is_located_and_named(case):
    representation, stream, units, error = INVALID[case]
    judgement = representation.validate(tokens_of(stream))
    assert not judgement.valid
    assert error in judgement.error
    assert judgement.units == units
    file = representation.to_bytes(tokens_of(stream))
    assert not is_canonical(file, representation.format, representation.fixed_size)


def test_damage_deep_in_a_file_is_put_into_its_mcu():
    representation = make("jpeg", size=256)
    tokens = representation.encode(synthetic(256, 256, 1))
    stream = bytearray(tokens.astype(np.uint8))
    marker = [i for i in range(59, len(stream)) if stream[i] == 0xFF and stream[i + 1] >= 0xD0]
    stream[marker[100] + 1] ^= 1
    judgement = representation.validate(tokens_of(stream))
    assert (judgement.units, judgement.expected) == (101, 256)
    assert f"byte {marker[100]}: found marker FFD5 after MCU 100" in judgement.error


def test_a_wrong_header_is_told_with_its_byte():
    representation = make("jpeg", size=32)
    tokens = representation.encode(synthetic(32, 32, 1))
    tokens[20] = 7
    judgement = representation.validate(tokens)
    assert judgement.error == "byte 20: found 07 in the header, expected FF"
    assert (judgement.units, judgement.expected) == (0, 4)


@pytest.mark.parametrize("strip", ["none", "tables"])
def test_a_stated_size_decides_what_is_expected(strip):
    representation = make("jpeg", size=None, strip=strip)
    tokens = representation.encode(synthetic(40, 20, 1))
    assert representation.validate(tokens).expected == 6
    at = representation.format.header(strip).size_at
    tokens[at + 3] = 50  # wider: four MCUs a row
    assert representation.validate(tokens).expected == 8
    assert "found marker FFD9 after MCU 5" in representation.validate(tokens).error
    tokens[at : at + 4] = 0
    assert "the header states a side of 0 pixels" in representation.validate(tokens).error


def test_special_tokens_are_damage_where_they_stand():
    representation = make("jpeg", size=64, num_labels=3)
    tokens = representation.encode(synthetic(64, 64, 1))
    for token in (representation.bos, representation.eos, representation.label_token(2), 60_000):
        for place in (0, 70, len(tokens)):
            judgement = representation.validate(np.insert(tokens, place, token))
            assert not judgement.valid
            assert f"token {token}" in judgement.error and f"place {place}" in judgement.error
    assert judgement.units == 16
    damaged = np.insert(tokens, 300, representation.eos)
    damaged[61] ^= 255
    assert "token" not in representation.validate(damaged).error, "the first damage is told"


@pytest.mark.parametrize("tokens", [np.zeros(3), np.zeros((2, 2), np.int32), np.array([], int)])
def test_what_is_no_document_is_judged_not_raised(tokens):
    assert not make("jpeg", size=8).validate(tokens).valid


def test_a_batch_of_nothing_is_nothing():
    assert make("jpeg").validate_batch([]) == []


@pytest.mark.parametrize("strip", ["tables", "header"])
def test_noise_is_judged_without_error(strip):
    rng = np.random.default_rng(0)
    representation = make("jpeg", size=64, strip=strip)
    header = representation.format.header(strip).at(64, 64)
    documents = [tokens_of(header + rng.bytes(int(rng.integers(0, 500)))) for _ in range(200)]
    assert not any(judgement.valid for judgement in representation.validate_batch(documents))
