"""Code words: any bytes come back from them, valid streams are made of nothing else."""

import itertools
import json

import numpy as np
import pytest
from PIL import Image

from data_pipelines.representations import from_config, load, make
from data_pipelines.representations.codewords import alphabet as alphabets
from data_pipelines.representations.codewords import compiled
from data_pipelines.representations.codewords.tokenizer import CodewordTokenizer
from data_pipelines.representations.jpeg import codewords
from data_pipelines.representations.jpeg.codeword_streams import Streams
from data_pipelines.representations.jpeg.format import JpegFormat
from data_pipelines.representations.jpeg.huffman import HuffmanTable
from data_pipelines.representations.tokenizer import TOKENIZER_FILE, BpeTokenizer, train_bpe
from tests.data_pipelines.representations.jpeg import codeword_models
from tests.data_pipelines.representations.jpeg.mutations import mutations, photos, synthetic

FORMATS = [("RGB", "4:2:0"), ("RGB", "4:2:2"), ("RGB", "4:4:4"), ("L", "4:4:4")]
SETTINGS = [
    dict(mode=mode, subsampling=sampling, restart_interval=interval, strip=strip, size=size)
    for (mode, sampling), interval, (strip, size) in itertools.product(
        FORMATS,
        (0, 1, 3),
        [("none", None), ("tables", (17, 23)), ("tables", None), ("header", 32)],
    )
]


def names(settings):
    return "-".join(str(value) for value in settings.values())


def pair(**settings):
    """The same representation with a token a byte and a token a code word."""
    return make("jpeg", **settings), make("jpeg", tokenizer="codewords", **settings)


def losses(settings, count, seed):
    """Mutated streams that do not come back from their tokens or are judged otherwise than bytes.

    Valid streams are checked to be code words throughout.
    """
    rng = np.random.default_rng(seed)
    bad = []
    for quality in (5, 25, 75, 98):
        as_bytes, words = pair(quality=quality, **settings)
        tokenizer = words.tokenizer
        images = [synthetic(*rng.integers(1, 40, 2).tolist(), seed) for seed in range(4)]
        streams = [as_bytes.encode(image).astype(np.uint8).tobytes() for image in images]
        in_size = 0 if settings["size"] else 4
        for image, stream in zip(images, streams, strict=True):
            tokens = words.encode(image)
            assert tokenizer.decode(tokens) == stream
            assert words.to_bytes(tokens) == as_bytes.to_bytes(np.frombuffer(stream, np.uint8))
            assert (tokens < 256).sum() == in_size
        mutated = list(mutations(streams, count // 4, seed=int(rng.integers(1 << 30))))
        tokens = [tokenizer.encode(stream) for stream in mutated]
        bad += [
            stream
            for stream, each in zip(mutated, tokens, strict=True)
            if tokenizer.decode(each) != stream
        ]
        judged = as_bytes.validate_batch([np.frombuffer(each, np.uint8) for each in mutated])
        bad += [
            stream
            for stream, mine, theirs in zip(
                mutated, words.validate_batch(tokens), judged, strict=True
            )
            if mine != theirs
        ]
        for judgement, each in zip(judged, tokens, strict=True):
            assert not judgement.valid or (each < 256).sum() == in_size
            # Any order of tokens gives some bytes.
            tokenizer.decode(rng.permutation(each))
    return bad


@pytest.mark.parametrize("settings", SETTINGS, ids=names)
def test_any_bytes_come_back_and_are_judged_alike(settings):
    assert losses(settings, 80, seed=1) == []


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("settings", SETTINGS, ids=names)
def test_a_hundred_thousand_mutated_streams_come_back(settings):
    assert losses(settings, 100_000 // len(SETTINGS), seed=2) == []


@pytest.mark.parametrize("settings", SETTINGS[:4], ids=names)
def test_noise_comes_back(settings):
    tokenizer = make("jpeg", tokenizer="codewords", **settings).tokenizer
    header = tokenizer.streams.header.at(*(tokenizer.streams.size or (9, 9)))
    rng = np.random.default_rng(0)
    noise = [rng.bytes(int(size)) for size in rng.integers(0, 300, 200)]
    noise += [bytes(rng.choice([0xFF, 0, 0xD0, 0xD9, 0x7F], 40).tolist()) for _ in range(200)]
    for data in noise:
        for stream in (data, header + data):
            assert tokenizer.decode(tokenizer.encode(stream)) == stream


@pytest.mark.parametrize("settings", SETTINGS[::4], ids=names)
def test_the_compiled_kernel_gives_the_same_tokens(settings, monkeypatch):
    pytest.importorskip("numba")
    rng = np.random.default_rng(0)
    for quality in (25, 98):
        as_bytes, words = pair(quality=quality, **settings)
        model = codeword_models.path(settings["mode"])
        trained = make("jpeg", quality=quality, **settings | dict(tokenizer=model))
        images = [synthetic(33, 21, seed) for seed in range(4)]
        streams = [as_bytes.tokenizer.decode(as_bytes.encode(image)) for image in images]
        changed = [*streams, *mutations(streams, 100, seed=7)]
        changed += [streams[0][: -int(rng.integers(40))] + rng.bytes(30) for _ in range(50)]
        for representation in (words, trained):
            found = {}
            for kernel in (True, False):
                if not kernel:
                    monkeypatch.setattr(compiled, "module", lambda name: None)
                tokenizer = representation.tokenizer
                found[kernel] = [tokenizer.encode(stream).tolist() for stream in changed]
                batch = tokenizer.encode_batch(changed)
                assert found[kernel] == [tokens.tolist() for tokens in batch]
            monkeypatch.undo()
            assert found[True] == found[False]


def test_photos_of_every_quality_come_back():
    for image, quality in zip(photos(6), (10, 25, 50, 75, 95, 100), strict=False):
        for interval in (0, 1):
            as_bytes, words = pair(size=128, quality=quality, restart_interval=interval)
            stream = as_bytes.encode(image).astype(np.uint8).tobytes()
            tokens = words.tokenizer.encode(stream)
            assert words.tokenizer.decode(tokens) == stream
            assert (tokens >= 256).all()


def test_the_alphabet_is_as_described():
    alphabet = codewords.alphabet(JpegFormat("RGB", 25, "4:2:0", 1))
    grey = codewords.alphabet(JpegFormat("L", 25, "4:4:4", 0))
    # 256 bytes, 2 headers, 9 markers, amplitudes of 1 to 6 bits; DC and AC words of each pair.
    joined = {1: 2, 2: 4, 3: 8}
    for index, pair in enumerate(alphabet.tables):
        for kind, table in zip((codewords.DC, codewords.AC), pair, strict=True):
            words = 0
            for symbol, (_, length) in table.codes.items():
                size = symbol if kind == codewords.DC else symbol & 15
                words += joined[size] if size in joined and length + size <= 11 else 1
            letters = alphabet.letters
            assert ((letters.kind == kind) & (letters.table == index)).sum() == words
    assert len(grey) == 256 + 2 + 9 + 126 + 23 + 201
    assert len(alphabet) == len(grey) + 23 + 204
    assert alphabet.describe()[: len(grey)] == grey.describe()
    for bits in range(1, 7):
        first = alphabet.amplitude(bits)
        assert letters.length[first : first + (1 << bits)].tolist() == [bits] * (1 << bits)
        assert letters.value[first : first + (1 << bits)].tolist() == list(range(1 << bits))
    # A block of zeros in luma: category 0 is 00, the end of the block 1010 (T.81, K.3).
    luma_zero = (letters.symbol == 0) & (letters.table == 0)
    dc, end = (
        int(np.flatnonzero((letters.kind == kind) & luma_zero)[0])
        for kind in (codewords.DC, codewords.AC)
    )
    streams = Streams(JpegFormat("L", 25, "4:4:4", 0), "header", (8, 8))
    assert streams.write(np.array([dc, end, alphabet.eoi])) == bytes([0b00101011, 0xFF, 0xD9])
    assert streams.read(bytes([0b00101011, 0xFF, 0xD9])).tolist() == [dc, end, alphabet.eoi]
    every = np.arange(len(alphabet))
    text = alphabets.to_text(every)
    assert len(set(text)) == len(alphabet)
    np.testing.assert_array_equal(alphabets.from_text(text, len(alphabet)), every)
    assert alphabets.from_text("a", len(alphabet)) is None
    assert alphabets.from_text(text, len(grey)) is None


def test_a_table_with_a_code_of_ones_is_refused():
    table = HuffmanTable((2,) + (0,) * 15, (0, 1))
    with pytest.raises(ValueError, match="1 ones"):
        codewords.checked_alphabet(((table, table),))


def test_bytes_are_filled_up_and_stuffed_where_letters_leave_them():
    streams = Streams(JpegFormat("L", 25, "4:4:4", 1), "header", (8, 8))
    alphabet = streams.alphabet
    four = alphabet.amplitude(4)
    ones = [four + 15, four + 15]
    write = streams.write
    assert write(np.array(ones)) == b"\xff\x00"
    assert write(np.array([four])) == b"\x0f"
    assert write(np.array([four, 0xFF, four])) == b"\x0f\xff\x0f"
    assert write(np.array([four, alphabet.restart + 3, *ones])) == b"\x0f\xff\xd3\xff\x00"
    assert write(np.array([0xFF, 0x00, alphabet.eoi])) == b"\xff\x00\xff\xd9"
    assert write(np.array([], np.int64)) == b""


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_trained_tokenizer_gives_fewer_tokens_and_the_same_files(mode, tmp_path):
    as_bytes = make("jpeg", size=48, mode=mode)
    plain = make("jpeg", size=48, mode=mode, tokenizer="codewords", num_labels=3)
    trained = codeword_models.trained(mode, size=48, num_labels=3)
    assert trained.vocab_size == 1103 and trained.label_token(2) == 1102
    assert trained.bos == 1 and trained.eos == 2
    assert plain.eos == plain.bos + 1 == len(plain.tokenizer.streams.alphabet) + 1
    images = [synthetic(60, 50, seed, mode) for seed in range(100, 106)]
    for image in images:
        stream = as_bytes.tokenizer.decode(as_bytes.encode(image))
        tokens = trained.encode(image)
        assert len(tokens) < 0.8 * len(plain.encode(image))
        assert trained.tokenizer.decode(tokens) == stream
        assert trained.decode(tokens).tobytes() == as_bytes.decode(as_bytes.encode(image)).tobytes()
        assert trained.validate(tokens).valid
        assert trained.codec_bytes(tokens) == len(stream)
    streams = [as_bytes.tokenizer.decode(as_bytes.encode(image)) for image in images]
    for stream in mutations(streams, 100, seed=3):
        assert trained.tokenizer.decode(trained.tokenizer.encode(stream)) == stream
    batch = trained.tokenizer.encode_batch(streams)
    assert [each.tolist() for each in batch] == [trained.encode(image).tolist() for image in images]
    for representation in (plain, trained):
        folder = tmp_path / representation.fingerprint
        representation.save(folder)
        loaded = load(folder)
        assert loaded == representation and loaded.fingerprint == representation.fingerprint
        described = json.loads((folder / "alphabet.json").read_text())
        assert described["sha256"] == representation.tokenizer.streams.alphabet.sha256
        assert len(described["letters"]) == len(representation.tokenizer.streams.alphabet)
    (tmp_path / trained.fingerprint / "tokenizer.model").unlink()
    with pytest.raises(ValueError, match=r"found no tokenizer\.model"):
        load(tmp_path / trained.fingerprint)


def test_a_settings_change_keeps_the_tokenizer_and_its_header():
    trained = codeword_models.trained(size=48)
    other = make(
        "jpeg", size=None, strip="none", restart_interval=0, tokenizer=codeword_models.path()
    )
    assert other.tokenizer.model == trained.tokenizer.model
    image = synthetic(30, 20, 0)
    assert other.decode(other.encode(image)).size == (30, 20)
    assert other != trained and other.fingerprint != trained.fingerprint


def test_wrong_tokens_are_named_with_their_position():
    representation = make("jpeg", size=16, strip="header", tokenizer="codewords", num_labels=2)
    tokenizer = representation.tokenizer
    whole = representation.encode(synthetic(16, 16, 0))
    header = tokenizer.streams.alphabet.header
    for wrong, name in [
        (representation.bos, "BOS"),
        (representation.label_token(1), "label 1"),
        (60_000, "outside the vocabulary"),
        (header, "special"),  # these streams have no header
    ]:
        tokens = np.concatenate([whole[:5], [wrong], whole[5:]])
        with pytest.raises(ValueError, match=rf"token {wrong} \({name}.*position 5"):
            tokenizer.decode(tokens)
        judged = representation.validate(tokens)
        assert not judged.valid and f"token {wrong}" in judged.error
    for nothing in (np.zeros((2, 2), int), np.zeros(3)):
        assert not representation.validate(nothing).valid


def test_tokenizers_of_other_tables_are_refused_by_name(tmp_path):
    colour, grey = codeword_models.model(), codeword_models.path("L")
    with pytest.raises(ValueError, match="jpeg_codewords:L:.*expected <jpeg_codewords:RGB:"):
        make("jpeg", size=48, tokenizer=grey)
    trained = codeword_models.trained(size=48)
    with pytest.raises(ValueError, match="SHA-256"):
        from_config(trained.to_config(), {TOKENIZER_FILE: codeword_models.model(vocab_size=1000)})
    with pytest.raises(ValueError, match=r"tokenizer\.model"):
        from_config(trained.to_config())
    config = trained.to_config()
    config["tokenizer"]["alphabet_sha256"] = "0" * 64
    with pytest.raises(ValueError, match="tables of codes differ"):
        from_config(config, {TOKENIZER_FILE: colour})
    path = tmp_path / "no.model"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        make("jpeg", size=48, tokenizer=str(path))
    with pytest.raises(ValueError, match="of bytes"):
        type(trained.tokenizer)(trained.tokenizer.streams, train_bpe([b"abcabc"], 262))
    with pytest.raises(ValueError, match="jpeg_codewords:RGB"):
        BpeTokenizer(colour)
    with pytest.raises(ValueError, match="jpeg_codewords:RGB:.*expected <avc_codewords:"):
        make("avc", tokenizer=codeword_models.path())


def test_tokens_have_no_bytes_of_their_own():
    with pytest.raises(ValueError, match="whole bytes"):
        make("jpeg", size=16, tokenizer="codewords").tokenizer.byte_lengths  # noqa: B018


def test_a_training_vocabulary_holds_the_alphabet():
    representation = make("jpeg", size=16)
    with pytest.raises(ValueError, match="848"):
        representation.train_tokenizer([b""], 847, "codewords")
    with pytest.raises(ValueError, match="words"):
        representation.train_tokenizer([b""], 847, "words")


@pytest.mark.parametrize("interval", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [(40, 72), None])
def test_prompts_hold_whole_rows_and_begin_their_documents(interval, size):
    image = synthetic(40, 72, 3)  # 3 by 5 MCUs
    settings = dict(size=size, restart_interval=interval)
    as_bytes, words = pair(**settings)
    trained = make("jpeg", tokenizer=codeword_models.path(), **settings)
    stream = as_bytes.tokenizer.decode(as_bytes.encode(image))
    for representation in (words, trained):
        whole = representation.encode(image)
        letters = representation.tokenizer.letters
        for ratio in (0, 0.1, 0.2, 0.5, 0.61, 0.999, 1):
            prompt = representation.prompt(whole, ratio)
            given = letters(prompt)
            np.testing.assert_array_equal(given, letters(whole)[: len(given)])
            rows = int(ratio * 5)
            if ratio == 0:
                assert len(prompt) == 0
                continue
            kind = representation.tokenizer.streams.alphabet.letters.kind[given]
            assert (kind == codewords.DC).sum() == rows * 3 * 6
            assert representation.validate(prompt).units == rows * 3
            if interval and rows and rows * 3 % interval == 0:
                assert kind[-1] == codewords.MARKER
            if interval == 1 and rows:
                assert stream.startswith(representation.tokenizer.decode(prompt))
            if rows:
                salvaged = representation.salvage(prompt)
                assert (~salvaged.filled).sum() == rows * 3
    with pytest.raises(ValueError, match="ratio"):
        words.prompt(whole, 1.5)


def test_prompts_end_with_tokens_of_their_document():
    representation = codeword_models.trained(restart_interval=0, size=48)
    cut_short = 0
    for seed in range(8):
        tokens = representation.encode(synthetic(60, 50, seed))
        for ratio in (0.34, 0.67):
            prompt = representation.prompt(tokens, ratio)
            assert prompt.tolist() == tokens[: len(prompt)].tolist()
            rows = int(ratio * 3)
            cut_short += representation.validate(prompt).units < 3 * rows
            one_more = representation.validate(tokens[: len(prompt) + 1])
            assert one_more.units >= 3 * rows, "the next token reaches over the cut"
    assert cut_short


def test_the_prompts_of_the_paper_are_the_same_bytes():
    as_bytes, words = pair(size=256)
    image = synthetic(256, 256, 1)
    theirs, mine = as_bytes.encode(image), words.encode(image)
    for ratio in (0.25, 0.375, 0.4375, 0.5, 0.75, 1):
        expected = as_bytes.prompt(theirs, ratio).astype(np.uint8).tobytes()
        assert words.tokenizer.decode(words.prompt(mine, ratio)) == expected


def test_a_prompt_of_a_damaged_document_is_refused_after_the_damage():
    as_bytes, words = pair(size=(16, 64), restart_interval=1)
    stream = as_bytes.tokenizer.decode(as_bytes.encode(synthetic(16, 64, 0)))
    third = stream.index(b"\xff\xd1") + 2
    damaged = stream[:third] + 3 * b"\xff\x00" + stream[third:]  # no code is so many ones
    tokens = words.tokenizer.encode(damaged)
    assert words.tokenizer.decode(words.prompt(tokens, 0.5)) == stream[:third]
    with pytest.raises(ValueError, match="damaged before the end of MCU 2"):
        words.prompt(tokens, 0.75)
    swapped = words.encode(synthetic(16, 64, 0))
    swapped = np.where(
        swapped == words.tokenizer.streams.alphabet.restart,
        words.tokenizer.streams.alphabet.restart + 5,
        swapped,
    )
    with pytest.raises(ValueError, match="damaged before the end of MCU 0"):
        words.prompt(swapped, 0.25)


def test_damaged_documents_are_salvaged_like_their_bytes():
    as_bytes, words = pair(size=64)
    streams = [as_bytes.tokenizer.decode(as_bytes.encode(synthetic(64, 64, s))) for s in range(3)]
    for stream in mutations(streams, 40, seed=9):
        mine, theirs = words.tokenizer.encode(stream), np.frombuffer(stream, np.uint8)
        try:
            expected = as_bytes.salvage(theirs)
        except ValueError:
            continue
        found = words.salvage(mine)
        assert found.report == expected.report
        assert found.image.tobytes() == expected.image.tobytes()
        assert isinstance(words.decode(mine), Image.Image)


@pytest.mark.slow
def test_letters_that_few_of_many_documents_have_keep_their_pieces():
    # SentencePiece's own coverage, in float32, loses one in 2**25.
    representation = make("jpeg", size=48)
    streams = [
        representation.tokenizer.decode(representation.encode(synthetic(60, 50, seed)))
        for seed in range(20)
    ]
    letters = sum(len(representation.streams.read(stream)) for stream in streams)
    documents = itertools.chain.from_iterable(itertools.repeat(streams, (1 << 25) // letters + 1))
    model = representation.train_tokenizer(documents, 900, "codewords")
    assert CodewordTokenizer(representation.streams, model).vocab_size == 900
