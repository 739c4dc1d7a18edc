"""Code words of H.264: any bytes come back from them, valid streams are made of nothing else."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest

from data_pipelines.representations import load, make
from data_pipelines.representations.avc import bitstream
from data_pipelines.representations.avc.codewords import alphabet as codewords
from data_pipelines.representations.avc.codewords import streams as codeword_streams
from data_pipelines.representations.avc.codewords import walk as codeword_walk
from data_pipelines.representations.codewords import compiled
from data_pipelines.representations.codewords.tokenizer import CodewordTokenizer
from data_pipelines.representations.tokenizer import BpeTokenizer, train_bpe
from tests.data_pipelines.representations.avc.clips import moving
from tests.data_pipelines.representations.avc.mutations import damaged, noise
from tests.data_pipelines.representations.machines import names

SETTINGS = [
    dict(size=(32, 32), frames=4, slice_mbs=0, strip="headers"),
    dict(size=(48, 32), frames=5, slice_mbs=1),
    dict(size=(64, 48), frames=5, slice_mbs=5, strip="headers", qp=12),
    dict(size=(64, 48), frames=3, slice_mbs=0, qp=1),
    dict(size=(64, 48), frames=5, min_frames=2, slice_mbs=7, strip="headers", qp=30),
    dict(size=(48, 32), frames=5, slice_mbs=0, strip="headers", qp=12, places=True),
]


@pytest.fixture(scope="module", params=SETTINGS, ids=names)
def representation(request):
    return make("avc", tokenizer="codewords", **request.param)


def streams(representation, seeds=3):
    """Streams of clips: noise with cuts, and smooth ones."""
    frames, (width, height) = representation.frames, representation.size
    found = [noise(representation, seed) for seed in range(seeds)]
    for cut in (0, 2):
        tokens = representation.encode(moving(frames, width, height, cut=cut))
        found.append(representation.tokenizer.decode(tokens))
    return found


def changed(representation, valid, count, seed):
    """Streams with damage in macroblocks, in headers, cut and joined ones."""
    rng = np.random.default_rng(seed)
    for turn in range(count):
        stream = damaged(representation, valid[turn % len(valid)], rng)
        at = int(rng.integers(len(stream)))
        match turn % 5:
            case 1:
                stream = stream[:at] + rng.bytes(int(rng.integers(1, 30))) + stream[at + 9 :]
            case 2:
                stream = stream[:at]
            case 3:
                stream = stream[at:] + valid[-1]
            case 4:
                stream = stream[:at] + bytes(rng.choice([0, 0, 0, 1, 3, 0x65, 0x41], 8).tolist())
        yield stream


def test_valid_streams_are_words_and_any_bytes_come_back(representation):
    as_bytes = make("avc", **representation_options(representation))
    tokenizer = representation.tokenizer
    valid = streams(representation)
    for stream in valid:
        tokens = tokenizer.encode(stream)
        assert (tokens >= 256).all()
        assert tokenizer.decode(tokens) == stream
        assert representation.validate(tokens).valid
        assert representation.codec_bytes(tokens) == len(stream)
    mutated = list(changed(representation, valid, 100, seed=0))
    tokens = [tokenizer.encode(stream) for stream in mutated]
    assert [tokenizer.decode(each) for each in tokens] == mutated
    judged = as_bytes.validate_batch([np.frombuffer(each, np.uint8) for each in mutated])
    assert representation.validate_batch(tokens) == judged
    assert not all(each.valid for each in judged)


@pytest.mark.slow
def test_a_hundred_thousand_damaged_streams_come_back(representation):
    valid = streams(representation)
    for stream in changed(representation, valid, 100_000 // len(SETTINGS), seed=1):
        assert representation.tokenizer.decode(representation.tokenizer.encode(stream)) == stream


def representation_options(representation):
    names = ("size", "frames", "min_frames", "qp", "slice_mbs", "strip")
    return {name: getattr(representation, name) for name in names}


def test_noise_comes_back(representation):
    rng = np.random.default_rng(0)
    start = streams(representation, seeds=1)[0][:60]
    for _ in range(200):
        data = bytes(rng.choice([0, 0, 0, 1, 3, 0x65, 0x41, 0x88], 40).tolist())
        for stream in (data, start + data, b""):
            tokens = representation.tokenizer.encode(stream)
            assert representation.tokenizer.decode(tokens) == stream


def test_any_words_in_any_order_give_a_stream_with_its_slices_in_order(representation):
    rng = np.random.default_rng(0)
    settings = representation.format
    for stream in streams(representation, seeds=1):
        tokens = rng.permutation(representation.tokenizer.encode(stream))
        written = representation.tokenizer.decode(tokens)
        plain = codewords.without_places()[0][tokens]
        slices = (plain >= codewords.IDR) & (plain <= codewords.NEXT)
        units = [written[nal.payload : nal.end] for nal in bitstream.nals(written)]
        places = [bitstream.Bits(unit).ue() for unit in units if unit[0] & 31 in (1, 5)]
        assert len(places) == slices.sum()
        expected = [number % settings.slices * settings.slice_mbs for number in range(len(places))]
        assert places == expected


def test_a_word_without_a_code_ends_its_slice():
    representation = make("avc", tokenizer="codewords", **SETTINGS[0])
    write = representation.streams.write
    skip = codewords.SKIP
    head = [codewords.IDR, codewords.MB_TYPE + 1]
    for word in (codewords.MB_TYPE, codewords.CBP, codewords.LEVEL, skip):
        assert write(np.array([*head, word, word])) == write(np.array(head))
    # A run of 1 has the code 010, then come the stop bit and zeros; of 2 the code is 011.
    one, two = (write(np.array([codewords.IDR, codewords.P, skip + run])) for run in (1, 2))
    assert one != two and len(one) == len(two)
    assert write(np.array([codewords.IDR, codewords.P, skip + 1, skip + 1])) == one
    # A frame of 4 macroblocks has no run of 5; 16 more are no different.
    none = write(np.array([codewords.IDR, codewords.P, skip + 5]))
    assert write(np.array([codewords.IDR, codewords.P, codewords.ADD_16, skip])) == none


def test_the_first_picture_is_idr_and_pictures_are_p_unless_stated():
    representation = make("avc", tokenizer="codewords", **SETTINGS[0])
    write = representation.streams.write
    idr, p, i, row, following = (
        codewords.IDR,
        codewords.P,
        codewords.I,
        codewords.ROW,
        codewords.NEXT,
    )
    assert write(np.array([idr])) == write(np.array([following]))
    assert write(np.array([idr, p])) == write(np.array([idr, row]))
    assert write(np.array([idr, i])) != write(np.array([idr, p]))
    assert write(np.array([codewords.END, 7, codewords.SKIP, 9])) == b"\7\t"


def test_a_slice_without_words_is_its_word_and_bytes():
    representation = make("avc", tokenizer="codewords", **SETTINGS[1])
    stream = streams(representation, seeds=1)[0]
    tokens = representation.tokenizer.encode(stream)
    tokenizer = representation.tokenizer
    third = np.flatnonzero((tokens >= codewords.IDR) & (tokens <= codewords.NEXT))[2:4]
    # Its macroblocks are replaced by ones, of which no macroblock is made.
    broken = np.concatenate([tokens[: third[0] + 1], [255, 255], tokens[third[1] :]])
    data = tokenizer.decode(broken)
    again = tokenizer.encode(data)
    # The last bits of the header's byte decide where the bytes end.
    assert (again < 256).sum() in (2, 3)
    assert again[: third[0] + 1].tolist() == tokens[: third[0] + 1].tolist()
    assert (again[third[0] + 4 :] >= 256).all() and tokenizer.decode(again) == data
    # Other bytes behind such a slice have a word between them.
    garbage = data[: data.rindex(b"\0\0\1")] + b"\0\0\1\7\7"
    assert tokenizer.decode(tokenizer.encode(garbage)) == garbage


def test_without_numba_the_letters_and_the_bytes_are_the_same(representation, monkeypatch):
    pytest.importorskip("numba")
    valid = streams(representation, seeds=2)
    every = [*valid, *changed(representation, valid, 20, seed=2)]
    letters = [representation.streams.read(stream).tolist() for stream in every]
    monkeypatch.setattr(compiled, "has_numba", lambda: False)
    spec = importlib.util.find_spec(codeword_walk.__name__)
    plain = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plain)
    monkeypatch.setattr(codeword_streams, "walk", plain)
    assert isinstance(plain.tables().lookup, list)
    assert [representation.streams.read(stream).tolist() for stream in every] == letters
    assert [representation.streams.write(np.array(each)) for each in letters] == every


@pytest.mark.parametrize(
    ("places", "count"), [(False, 307), (True, 307 + 135 + 1612 + 480 + 119 + 650 + 45)]
)
def test_the_alphabet_is_as_described(places, count):
    alphabet = codewords.Alphabet(places)
    described = alphabet.describe()
    assert len(described) == len(alphabet) == 256 + count
    assert len({entry["character"] for entry in described}) == len(described)
    values = {(entry["kind"], str(entry["value"]), entry.get("place")) for entry in described}
    assert len(values) == len(described)
    for letter, kind, value in [
        (codewords.IDR, "slice", "IDR"),
        (codewords.MVD + 16, "mvd", 16),
        (codewords.MVD + 32, "mvd", -16),
        (codewords.LEVEL, "level", 1),
        (codewords.LEVEL + 16, "level", -1),
        (codewords.COEFF_TOKEN + 61, "coeff_token", [16, 3]),
        (codewords.SIGNS + 13, "signs", "111"),
        (codewords.ADD_256 + 7, "add 256", 2048),
    ]:
        assert (described[letter]["kind"], described[letter]["value"]) == (kind, value)
    if places:
        last = {"kind": "slice", "value": "P", "place": 15}
        assert {name: described[-1][name] for name in last} == last
        first = codewords.first_letters()
        block = described[first[codewords.CHROMA_AC_PLACE + 7] + 61]
        assert block == {**block, "kind": "coeff_token", "value": [16, 3], "place": 26}
        run = described[first[codewords.run_place(3, 2)] + 3]
        assert run == {**run, "kind": "run_before", "value": 3}


def test_words_say_where_they_stand():
    plain = make("avc", tokenizer="codewords", **SETTINGS[-1] | dict(places=False))
    placed = make("avc", tokenizer="codewords", **SETTINGS[-1])
    letters, places = codewords.without_places()
    seen = set()
    for stream in streams(placed):
        found = placed.streams.read(stream)
        np.testing.assert_array_equal(letters[found], plain.streams.read(stream))
        of = places[found]
        modes = of[(of >= codewords.MODE_PLACE) & (of < codewords.TOKEN_PLACE)]
        assert modes.tolist() == [*range(1, 17)] * (len(modes) // 16)
        pictures = of[of >= codewords.PICTURE_PLACE] - codewords.PICTURE_PLACE
        assert pictures.tolist() == [0, 1, 2, 3, 4]
        # Levels count down to 1, and then come zeros or another block.
        levels = np.flatnonzero((of >= codewords.LEVEL_PLACE) & (of < codewords.ZEROS_PLACE))
        for at in levels[:-1]:
            if of[at] > codewords.LEVEL_PLACE:
                behind = next(value for value in of[at + 1 :] if value)
                assert behind == of[at] - 1
        seen |= set(of.tolist())
    assert seen >= set(range(codewords.MODE_PLACE, codewords.TOKEN_PLACE))
    assert seen >= set(range(codewords.LUMA_PLACE, codewords.CHROMA_DC_PLACE)), "blocks of luma"
    assert len({place for place in seen if place >= codewords.RUN_PLACE}) > 60
    # A word of another place has no code.
    found = placed.streams.read(streams(placed)[0])
    wrong = found.copy()
    at = int(np.argmax(places[found] == codewords.MODE_PLACE + 4))
    first = codewords.first_letters()
    wrong[at] += first[codewords.MODE_PLACE + 5] - first[codewords.MODE_PLACE + 4]
    assert not placed.validate(wrong).valid and placed.validate(found).valid


def test_a_trained_tokenizer_gives_fewer_tokens_and_is_saved(tmp_path):
    options = dict(size=(32, 32), frames=4, slice_mbs=0)
    plain = make("avc", tokenizer="codewords", num_labels=2, **options)
    documents = [noise(plain, seed) for seed in range(12)]
    model = plain.train_tokenizer(documents, 700, "codewords")
    (tmp_path / "words.model").write_bytes(model)
    trained = make("avc", tokenizer=str(tmp_path / "words.model"), num_labels=2, **options)
    assert (trained.vocab_size, trained.bos, trained.eos) == (702, 1, 2)
    stream = noise(plain, 100)
    tokens = trained.tokenizer.encode(stream)
    assert len(tokens) < 0.9 * len(plain.tokenizer.encode(stream))
    assert trained.tokenizer.decode(tokens) == stream and trained.validate(tokens).valid
    placed = make("avc", tokenizer="codewords", places=True, **options)
    assert placed.fingerprint != plain.fingerprint
    for representation in (plain, trained, placed):
        folder = tmp_path / representation.fingerprint
        representation.save(folder)
        loaded = load(folder)
        assert loaded == representation and loaded.fingerprint == representation.fingerprint
        saved = json.loads((folder / "alphabet.json").read_text())
        described = codewords.Alphabet(representation.places).describe()
        assert saved["letters"] == described
    with pytest.raises(ValueError, match="567"):
        plain.train_tokenizer(documents, 566, "codewords")
    with pytest.raises(ValueError, match="avc_codewords:"):
        BpeTokenizer(model)
    with pytest.raises(ValueError, match="of bytes, expected <avc_codewords:"):
        CodewordTokenizer(plain.streams, train_bpe([b"abcabc"], 262))
    with pytest.raises(ValueError, match="avc_codewords:.*expected <jpeg_codewords:"):
        make("jpeg", tokenizer=str(tmp_path / "words.model"))


def test_prompts_are_the_words_of_whole_frames(representation):
    as_bytes = make("avc", **representation_options(representation))
    stream = streams(representation, seeds=0)[0]
    words, data = representation.tokenizer.encode(stream), np.frombuffer(stream, np.uint8)
    assert len(representation.prompt(words, 0)) == 0
    for ratio in (0.34, 0.7, 1):
        prompt = representation.prompt(words, ratio)
        assert words[: len(prompt)].tolist() == prompt.tolist()
        whole = as_bytes.prompt(data, ratio).astype(np.uint8).tobytes()
        held = representation.tokenizer.letters(prompt)
        letters = representation.tokenizer.streams.read(whole)
        assert held.tolist() == letters[: len(held)].tolist()
        if representation.tokenizer.model is None:  # no token reaches over the cut
            assert representation.tokenizer.decode(prompt) == whole
        else:
            one_more = representation.tokenizer.letters(words[: len(prompt) + 1])
            assert len(one_more) > len(letters) or ratio == 1
