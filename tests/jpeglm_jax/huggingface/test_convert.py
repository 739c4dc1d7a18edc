"""Hugging Face checkpoints are converted to a run and back unchanged; errors name the cause."""

import dataclasses
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from etils import epath
from flax import nnx

from configs import jpeg
from data_pipelines import representations
from jpeglm_jax.convert import from_hf, to_hf
from jpeglm_jax.generation.engine import Engine
from jpeglm_jax.generation.sampling import SamplingParams
from jpeglm_jax.huggingface import ConversionError, safetensors, weights
from jpeglm_jax.huggingface import config as hf_config
from jpeglm_jax.model.config import ModelConfig
from jpeglm_jax.training import checkpoint
from tests.data_pipelines.representations.vq import tokenizers
from tests.jpeglm_jax.runs import ROOT

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
TOKENIZER = GOLDEN / "tokenizer" / "trained_here.model"
SMALL = ModelConfig(vocab_size=320, layers=3, width=32, heads=4, kv_heads=4, head_dim=8, ffn=48)
VARIANTS = {
    "float32": (SMALL, "float32"),
    "bfloat16": (SMALL, "bfloat16"),
    "float16": (SMALL, "float16"),
    "grouped": (dataclasses.replace(SMALL, kv_heads=2), "float32"),
    "tied": (dataclasses.replace(SMALL, tied=True), "bfloat16"),
}


def make(folder, model=SMALL, dtype="float32", change=lambda tensors: None):
    """A checkpoint as `transformers` writes it, of random weights, in several files."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    tensors = {}
    for weight in weights.table(model):
        for name in weight.names:
            shape = weight.tensor_shape
            spread = shape[-1] ** -0.5 if len(shape) > 1 else 1.0
            tensors[name] = (spread * rng.standard_normal(shape)).astype(np.float32)
    change(tensors)
    stored = {"bfloat16": ml_dtypes.bfloat16}.get(dtype, dtype)
    shards = safetensors.plan([(n, t.shape) for n, t in tensors.items()], dtype, 40_000)
    values = (tensor.astype(stored) for tensor in tensors.values())
    safetensors.write(epath.Path(folder), shards, dtype, values)
    config_json = hf_config.to_json(model, seq_len=64, bos=1, eos=2, dtype=dtype)
    (folder / "config.json").write_text(config_json)
    shutil.copy(TOKENIZER, folder / "tokenizer.model")
    return folder


def stored(folder):
    tensors = safetensors.open_folder(folder)
    return {name: (t.dtype, t.shape, t.read().tobytes()) for name, t in tensors.items()}


def logits_of(model, tokens):
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    llama = nnx.merge(model.spec.graph, model.params)
    return np.asarray(llama(tokens, np.ones_like(tokens), positions))


def config():
    return jpeg.get_config("7b")


def test_logits_of_a_converted_checkpoint_equal_those_of_transformers(tmp_path):
    hf_dir = tmp_path / "hf"
    shutil.copytree(GOLDEN / "convert" / "checkpoint", hf_dir)
    shutil.copy(TOKENIZER, hf_dir / "tokenizer.model")
    done = from_hf(hf_dir, tmp_path / "run", config())
    assert done["dtype"] == "bfloat16" and done["seq_len"] == 12_288
    golden = np.load(GOLDEN / "convert" / "logits.npz")
    model = checkpoint.load(tmp_path / "run")
    assert golden["logits"].std() > 0.5
    ours = logits_of(model, golden["tokens"])
    np.testing.assert_allclose(ours, golden["logits"], atol=1e-4, rtol=0)
    to_hf(tmp_path / "run", tmp_path / "back")
    assert stored(tmp_path / "back") == stored(hf_dir)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_round_trip_is_bit_identical(name, tmp_path):
    model, dtype = VARIANTS[name]
    hf_dir = make(tmp_path / "hf", model, dtype)
    from_hf(hf_dir, tmp_path / "run", config())
    done = to_hf(tmp_path / "run", tmp_path / "back")
    assert done["dtype"] == dtype
    assert stored(tmp_path / "back") == stored(hf_dir)
    assert hf_config.read(epath.Path(tmp_path / "back")) == hf_config.read(epath.Path(hf_dir))
    assert (tmp_path / "back" / "tokenizer.model").read_bytes() == TOKENIZER.read_bytes()
    assert (tmp_path / "back" / "README.md").is_file()


def test_a_model_of_learned_codes_takes_its_tokenizer_along(tmp_path):
    vq = tokenizers.representation(num_labels=3)
    hf_dir = make(tmp_path / "hf", dataclasses.replace(SMALL, vocab_size=vq.vocab_size))
    (hf_dir / "tokenizer.model").unlink()
    (hf_dir / "config.json").write_text(
        hf_config.to_json(
            dataclasses.replace(SMALL, vocab_size=vq.vocab_size),
            seq_len=64,
            bos=vq.bos,
            eos=vq.eos,
            dtype="float32",
        )
    )
    vq.save(epath.Path(hf_dir))
    from_hf(hf_dir, tmp_path / "run", config())
    to_hf(tmp_path / "run", tmp_path / "back")
    assert stored(tmp_path / "back") == stored(hf_dir)
    assert representations.load(tmp_path / "back") == vq
    stated = json.loads((tmp_path / "back" / "representation.json").read_text())
    assert stated["weights"]["sha256"] == hashlib.sha256(tokenizers.file()).hexdigest()
    assert not (tmp_path / "back" / "tokenizer.model").exists()


def test_the_commands_convert_both_ways(tmp_path):
    make(tmp_path / "hf")
    for direction, folder in (("from_hf", "hf"), ("to_hf", "back")):
        flags = [f"--workdir={tmp_path / 'run'}", f"--hf_dir={tmp_path / folder}"]
        command = [sys.executable, "-m", "jpeglm_jax.convert", direction, *flags]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
    assert stored(tmp_path / "back") == stored(tmp_path / "hf")


def test_the_table_has_all_tensors_of_the_released_model():
    expected = json.loads((GOLDEN / "convert" / "names_7b.json").read_text())
    table = weights.table(ModelConfig(vocab_size=320))
    ours = {name: list(weight.tensor_shape) for weight in table for name in weight.names}
    assert ours == expected


@pytest.mark.parametrize("version", ["4.38.2", "5.23.0"])
def test_configurations_of_both_versions_are_read_or_refused_by_name(version, tmp_path):
    configs = json.loads((GOLDEN / "convert" / f"configs_{version}.json").read_text())

    def read(name):
        (tmp_path / "config.json").write_text(json.dumps(configs[name]))
        return hf_config.read(epath.Path(tmp_path))

    plain = read("plain")
    assert plain.model == SMALL and plain.seq_len == 12_288
    assert read("grouped").model.kv_heads == 2
    assert read("tied").model.tied
    assert read("base").model.rope_theta == 500_000.0
    with pytest.raises(ConversionError, match="rope.* 'linear'"):
        read("stretched")
    with pytest.raises(ConversionError, match="attention_bias is True"):
        read("biased")


def remove(tensors):
    del tensors["model.layers.1.mlp.up_proj.weight"]


def add(tensors):
    tensors["model.layers.0.self_attn.q_norm.weight"] = np.ones(8, np.float32)


def misshape(tensors):
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (remove, r"missing: model\.layers\.1\.mlp\.up_proj\.weight"),
        (add, r"unknown: model\.layers\.0\.self_attn\.q_norm\.weight"),
        (misshape, r"lm_head\.weight is \[319, 32\], expected \[320, 32\]"),
    ],
)
def test_a_wrong_tensor_is_named_and_nothing_is_written(change, found, tmp_path):
    hf_dir = make(tmp_path / "hf", change=change)
    with pytest.raises(ConversionError, match=found):
        from_hf(hf_dir, tmp_path / "run", config())
    assert not (tmp_path / "run").exists()


def without_weights(folder):
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02")


def cut_short(folder):
    path = sorted(folder.glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-4])


def only_a_pointer(folder):
    path = sorted(folder.glob("*.safetensors"))[0]
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (without_weights, "pickles"),
        (cut_short, "by its header"),
        (only_a_pointer, "git lfs pull"),
        (lambda folder: (folder / "tokenizer.model").unlink(), "tokenizer.model"),
        (lambda folder: (folder / "config.json").write_text("{"), "is no JSON"),
        (lambda folder: sorted(folder.glob("*.safetensors"))[1].unlink(), "has no model-00002"),
    ],
)
def test_a_damaged_folder_is_refused(change, found, tmp_path):
    hf_dir = make(tmp_path / "hf")
    change(hf_dir)
    with pytest.raises(ConversionError, match=found):
        from_hf(hf_dir, tmp_path / "run", config())


def test_an_existing_folder_is_not_overwritten(tmp_path):
    hf_dir = make(tmp_path / "hf")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("")
    with pytest.raises(ConversionError, match="run exists"):
        from_hf(hf_dir, tmp_path / "run", config())


def test_a_run_without_its_tokenizer_is_refused(tmp_path):
    from_hf(make(tmp_path / "hf"), tmp_path / "run", config())
    (tmp_path / "run" / "tokenizer.model").unlink()
    with pytest.raises(ValueError, match="run: found no tokenizer.model"):
        checkpoint.load(tmp_path / "run")


def test_qk_norm_is_refused_by_name():
    with pytest.raises(ConversionError, match="model.qk_norm"):
        weights.table(dataclasses.replace(SMALL, qk_norm=True))


# Compared with transformers


def margin(logits):
    best = np.sort(logits)[-2:]
    return best[1] - best[0]


@pytest.mark.parity
@pytest.mark.parametrize("name", ["float32", "grouped", "tied"])
def test_an_exported_model_computes_and_generates_the_same_in_transformers(name, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from_hf(make(tmp_path / "hf", *VARIANTS[name]), tmp_path / "run", config())
    to_hf(tmp_path / "run", tmp_path / "back")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "back", dtype=torch.float32
    ).eval()
    model = checkpoint.load(tmp_path / "run")
    tokens = np.random.RandomState(0).randint(3, 320, (2, 64))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).logits.numpy()
    np.testing.assert_allclose(logits_of(model, tokens), expected, atol=1e-4, rtol=0)

    prompts = [np.array([1, *tokens[0, : n - 1]], np.int32) for n in (1, 2, 7, 20, 40)]
    engine = Engine(
        model.spec,
        model.mesh,
        SamplingParams(temperature=0.0),
        batch_size=8,
        seq_len=64,
        seed=0,
        eos=model.representation.eos,
    )
    for sample in engine(model.params, prompts):
        prompt = torch.from_numpy(prompts[sample.number][None].astype(np.int64))
        with torch.no_grad():
            row = theirs.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                max_length=64,
                pad_token_id=2,
            )
            logits = theirs(row).logits[0].numpy()
        row = row[0].tolist()
        ours = [1, *sample.tokens.tolist(), *[2] * sample.complete]
        differing = [n for n, (a, b) in enumerate(zip(ours, row, strict=False)) if a != b]
        if differing:  # only where the two most likely tokens are nearly equal
            assert margin(logits[differing[0] - 1]) < 1e-3
        else:
            assert ours == row
