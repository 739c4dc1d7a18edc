"""Conversion keeps the meaning: a config is read or refused, and ours is accepted."""

import json
import shutil

import numpy as np
import pytest
from etils import epath

from jpeglm_jax.convert import from_hf, to_hf
from jpeglm_jax.generation.sampling import SamplingParams
from jpeglm_jax.huggingface import ConversionError
from jpeglm_jax.huggingface import config as hf_config
from jpeglm_jax.huggingface import generation as hf_generation
from jpeglm_jax.training import checkpoint
from tests.jpeglm_jax.huggingface.test_convert import config, make


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return make(tmp_path_factory.mktemp("original") / "hf")


@pytest.fixture
def hf_dir(original, tmp_path):
    shutil.copytree(original, tmp_path / "hf")
    return tmp_path / "hf"


def change(folder, name="config.json", remove=(), **values):
    path = folder / name
    found = json.loads(path.read_text()) if path.exists() else {}
    found |= values
    for key in remove:
        found.pop(key, None)
    path.write_text(json.dumps(found))


def read(folder):
    return hf_config.read(epath.Path(folder))


REFUSED = {
    "hidden_act is 'gelu'": {"hidden_act": "gelu"},
    "mlp_bias is True": {"mlp_bias": True},
    "attention_bias is True": {"attention_bias": True},
    "quantization_config": {"quantization_config": {"bits": 4}},
    "sliding_window is 4096": {"sliding_window": 4096},
    "layer_types": {"layer_types": ["full_attention", "sliding_attention"]},
    "rope_scaling is of type 'llama3'": {"rope_scaling": {"rope_type": "llama3"}},
    "rope_parameters is of type 'yarn'": {"rope_parameters": {"rope_type": "yarn"}},
    "rope_parameters is .*expected one set": {
        "rope_parameters": {"full_attention": {"rope_theta": 1e4, "rope_type": "default"}}
    },
    "partial_rotary_factor is 0.5": {"partial_rotary_factor": 0.5},
    "rope_theta is 10000.0, 500000.0 in rope_scaling": {
        "rope_theta": 1e4,
        "rope_scaling": {"type": "default", "rope_theta": 5e5},
    },
    "rope_theta is -1": {"rope_theta": -1, "rope_parameters": None},
    "rope_theta is nan": {"rope_theta": float("nan"), "rope_parameters": None},
    "rms_norm_eps is inf": {"rms_norm_eps": float("inf")},
    "rms_norm_eps is '1e-5'": {"rms_norm_eps": "1e-5"},
    "vocab_size is True": {"vocab_size": True},
    "does not divide model.heads": {"num_key_value_heads": 3},
    "eos_token_id is 'x'": {"eos_token_id": "x"},
    "model_type is 'mistral'": {"model_type": "mistral"},
}


def test_what_our_model_has_not_is_refused_by_name(hf_dir):
    plain = (hf_dir / "config.json").read_text()
    for found, values in REFUSED.items():
        (hf_dir / "config.json").write_text(plain)
        change(hf_dir, **values)
        with pytest.raises(ConversionError, match=found):
            read(hf_dir)


def test_neutral_and_missing_values_have_transformers_meaning(hf_dir):
    plain = read(hf_dir)
    change(
        hf_dir,
        remove=["rope_theta", "head_dim", "mlp_bias", "attention_bias", "bos_token_id"],
        rope_parameters=None,
        rope_scaling=None,
        partial_rotary_factor=None,
        sliding_window=None,
        pretraining_tp=2,  # splits products, and changes none
        hidden_act="swish",
        attention_dropout=0.1,  # training only
        layer_types=["full_attention"] * 3,
    )
    assert read(hf_dir) == plain
    change(hf_dir, rope_scaling={"type": "default"}, rope_theta=5e5)
    assert read(hf_dir).model.rope_theta == 5e5
    change(hf_dir, remove=["rms_norm_eps"])
    assert read(hf_dir).model.norm_eps == 1e-6


@pytest.mark.parametrize(
    ("name", "values", "found"),
    [
        ("config.json", {"bos_token_id": 2}, "config.json: bos_token_id is 2, but 1"),
        ("config.json", {"eos_token_id": [2, 7]}, "eos_token_id is 2, 7, but 2"),
        ("config.json", {"bos_token_id": 256, "eos_token_id": 257}, "256, but 1.*257, but 2"),
        (
            "generation_config.json",
            {"eos_token_id": 5},
            "generation_config.json: eos_token_id is 5",
        ),
    ],
)
def test_ids_that_contradict_the_tokenizer_are_refused(name, values, found, hf_dir, tmp_path):
    change(hf_dir, name, **values)
    with pytest.raises(ConversionError, match=found):
        from_hf(hf_dir, tmp_path / "run", config())
    assert not (tmp_path / "run").exists()


def test_the_sequence_length_is_at_most_that_of_the_model(hf_dir, tmp_path):
    with pytest.raises(ConversionError, match="seq_len is 65; .* 64"):
        from_hf(hf_dir, tmp_path / "run", config(), seq_len=65)


def test_sampling_defaults_of_the_checkpoint_become_those_of_the_run(hf_dir, tmp_path):
    values = {"do_sample": True, "temperature": 0.7, "repetition_penalty": 1.2, "eos_token_id": 2}
    change(hf_dir, "generation_config.json", **values)
    done = from_hf(hf_dir, tmp_path / "run", config(), keep_sampling=["top_p"])
    assert done["unused"] == ["repetition_penalty"]
    sample = checkpoint.describe(tmp_path / "run").config.sample
    # top_k: `generate` has a default of its own; top_p: as asked for.
    assert (sample.temperature, sample.top_k, sample.top_p) == (0.7, 50, config().sample.top_p)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.7, top_k=50, top_p=0.9),
        SamplingParams(temperature=2, min_p=0.1),
        SamplingParams(temperature=0.0),
    ],
)
def test_sampling_parameters_survive_both_ways(params, tmp_path):
    hf_generation.write(epath.Path(tmp_path), params, seq_len=64, bos=1, eos=2)
    found = hf_generation.read(epath.Path(tmp_path))
    assert SamplingParams(**found.sampling) == params
    assert found.ids == {"bos_token_id": (1,), "eos_token_id": (2,)} and not found.unused
    values = json.loads((tmp_path / "generation_config.json").read_text())
    assert values["do_sample"] == (params.temperature > 0)
    assert values.get("temperature", 1.0) > 0  # `generate` refuses a temperature of 0


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"do_sample": True, "temperature": 0}, "temperature is 0"),
        ({"do_sample": True, "temperature": float("nan")}, "temperature is nan"),
        ({"do_sample": True, "top_p": 2}, "top_p is 2"),
    ],
)
def test_sampling_defaults_out_of_range_are_refused(values, found, hf_dir):
    change(hf_dir, "generation_config.json", **values)
    with pytest.raises(ConversionError, match=found):
        hf_generation.read(epath.Path(hf_dir))


def test_guidance_is_explained_in_the_card(hf_dir, tmp_path):
    from_hf(hf_dir, tmp_path / "run", config())
    to_hf(tmp_path / "run", tmp_path / "plain")
    assert "guidance" not in (tmp_path / "plain" / "README.md").read_text()
    guided = config()
    guided.sample.guidance = 3.0
    from_hf(hf_dir, tmp_path / "guided", guided)
    to_hf(tmp_path / "guided", tmp_path / "back")
    assert "guidance_scale=3.0" in (tmp_path / "back" / "README.md").read_text()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(value, tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"

    def spoil(tensors):
        tensors[name][3, 4] = value

    # Our own writer refuses such values as well, so the file is changed behind its back.
    hf_dir = make(tmp_path / "hf")
    with pytest.raises(ConversionError, match=f"{name} has 1 values"):
        make(tmp_path / "refused", change=spoil)
    from jpeglm_jax.huggingface import safetensors

    tensor = safetensors.open_folder(hf_dir)[name]
    with open(tensor.file, "r+b") as file:
        file.seek(tensor.start)
        file.write(np.float32(value).tobytes())
    with pytest.raises(ConversionError, match=f"{name} has 1 values that are NaN or infinite"):
        from_hf(hf_dir, tmp_path / "run", config())
    assert not (tmp_path / "run").exists()


def test_a_number_of_layers_that_the_file_cannot_hold_is_refused_at_once(hf_dir, tmp_path):
    change(hf_dir, num_hidden_layers=10**12)
    with pytest.raises(ConversionError, match="1,000,000,000,000 layers"):
        from_hf(hf_dir, tmp_path / "run", config())


@pytest.mark.parity
def test_transformers_accepts_the_sampling_defaults_that_are_written(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    hf_dir = make(tmp_path / "hf")
    for number, change_of in enumerate(
        [{"temperature": 0.0}, {"temperature": 0.7, "top_k": 0, "top_p": 0.9}, {"min_p": 0.1}]
    ):
        settings = config()
        settings.sample.update(change_of)
        from_hf(hf_dir, tmp_path / f"run{number}", settings)
        back = tmp_path / f"back{number}"
        to_hf(tmp_path / f"run{number}", back)
        model = transformers.AutoModelForCausalLM.from_pretrained(back).eval()
        model.generation_config.validate(strict=True)
        row = model.generate(torch.tensor([[1]]))
        assert row.shape[1] <= 64
        stated = model.generation_config
        assert bool(stated.do_sample) == (settings.sample.temperature > 0)
