"""Tokenizers over code words as files for `transformers`."""

import json

import numpy as np
import pytest
import sentencepiece
from etils import epath

from data_pipelines.representations import make
from jpeglm_jax.huggingface import card, tokenizer
from jpeglm_jax.model.config import model_config
from tests.data_pipelines.representations.jpeg import codeword_models
from tests.data_pipelines.representations.jpeg.mutations import synthetic
from tests.jpeglm_jax.conftest import tiny


def saved(representation, folder):
    folder = epath.Path(folder)
    representation.save(folder)
    tokenizer.write(folder, representation.tokenizer, seq_len=512)
    return folder


def test_a_trained_tokenizer_goes_out_with_its_model_and_alphabet(tmp_path):
    representation = codeword_models.trained(size=48, num_labels=2)
    folder = saved(representation, tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "LlamaTokenizer"
    assert [config["bos_token"], config["eos_token"]] == ["<s>", "</s>"]
    assert sorted(config["added_tokens_decoder"]) == ["1100", "1101"]
    pieces = sentencepiece.SentencePieceProcessor(
        model_proto=(folder / "tokenizer.model").read_bytes()
    )
    image = synthetic(60, 50, 7)
    stream = representation.tokenizer.decode(representation.encode(image))
    text = representation.tokenizer.to_text(stream)
    assert pieces.encode(text) == representation.encode(image).tolist()
    letters = json.loads((folder / "alphabet.json").read_text())["letters"]
    meaning = {entry["character"]: entry for entry in letters}
    assert {meaning[character]["kind"] for character in text} == {
        "header",
        "marker",
        "amplitude",
        "DC",
        "AC",
    }


def test_one_id_a_code_word_goes_out_as_characters(tmp_path):
    representation = make("jpeg", size=48, tokenizer="codewords", num_labels=2)
    folder = saved(representation, tmp_path)
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    image = synthetic(60, 50, 7)
    tokens = representation.encode(image)
    text = representation.tokenizer.to_text(representation.tokenizer.decode(tokens))
    assert [vocab[character] for character in text] == tokens.tolist()
    assert len(vocab) == representation.bos


@pytest.mark.parametrize("trained", [False, True])
def test_a_card_says_what_the_ids_are(trained, tmp_path):
    representation = (
        codeword_models.trained(size=48)
        if trained
        else make("jpeg", size=48, tokenizer="codewords")
    )
    model = model_config(tiny().model, representation.vocab_size, "cpu")
    card.write(
        epath.Path(tmp_path), model, representation, parameters=1, seq_len=512, dtype="float32"
    )
    text = (tmp_path / "README.md").read_text()
    wanted = "1100 pieces of `tokenizer.model`" if trained else "844 letters of `alphabet.json`"
    assert wanted in text


@pytest.mark.parity
@pytest.mark.parametrize("trained", [False, True])
def test_transformers_gives_the_same_ids(trained, tmp_path):
    transformers = pytest.importorskip("transformers")
    representation = (
        codeword_models.trained(size=48, num_labels=2)
        if trained
        else make("jpeg", size=48, tokenizer="codewords", num_labels=2)
    )
    folder = saved(representation, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(str(folder), use_fast=not trained)
    for seed in range(5):
        stream = representation.tokenizer.decode(representation.encode(synthetic(60, 50, seed)))
        text = representation.tokenizer.to_text(stream)
        ids = theirs(text)["input_ids"]
        expected = [representation.bos, *representation.tokenizer.encode(stream).tolist()]
        np.testing.assert_array_equal(ids, expected)
    assert theirs.convert_tokens_to_ids("<label_1>") == representation.label_token(1)
