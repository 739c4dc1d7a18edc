"""Makes what conversion is held against: files that `transformers` itself wrote.

    python tests/golden/convert/make.py checkpoint   # with torch, transformers 5 and sentencepiece
    python tests/golden/convert/make.py names        # the same
    python tests/golden/convert/make.py configs      # with transformers, once for each version

`checkpoint` writes checkpoint/ (a small Llama of JPEG-LM's vocabulary, bfloat16, in several files)
and logits.npz, its logits in float32. `names` writes names_7b.json: every tensor and its shape of
the released JPEG-LM's architecture, made without weights. `configs` writes configs_VERSION.json.

A difference between these files and what the project reads or writes is a fault of the project.
Renew them when `transformers` changes what it writes, and keep those of the version before: both
must be read.
"""

import json
import pathlib
import sys
import tempfile

import numpy as np
import transformers

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "llama"))

from weights import draw  # noqa: E402

JPEG_LM_7B = {
    "vocab_size": 320,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 12288,
}
SMALL = JPEG_LM_7B | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
CONFIGS = {
    "plain": SMALL,
    "grouped": SMALL | {"num_key_value_heads": 2},
    "tied": SMALL | {"tie_word_embeddings": True},
    "base": SMALL | {"rope_theta": 500000.0},
    "stretched": SMALL | {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "biased": SMALL | {"attention_bias": True},
}
TOKENS = np.random.RandomState(3).randint(0, 320, (2, 20))


def make_checkpoint() -> None:
    import torch

    torch.set_num_threads(1)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL)).eval()
    for name, value in model.named_parameters():
        value.data = torch.from_numpy(draw(name, tuple(value.shape)))
    model.to(torch.bfloat16).save_pretrained(HERE / "checkpoint", max_shard_size="40KB")
    # Read anew: rounding to bfloat16 and back would leave the rotary frequencies rounded.
    model = transformers.LlamaForCausalLM.from_pretrained(HERE / "checkpoint", dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.from_numpy(TOKENS)).logits.numpy()
    np.savez_compressed(HERE / "logits.npz", tokens=TOKENS, logits=logits)
    print("transformers", transformers.__version__, "torch", torch.__version__)


def make_names() -> None:
    import torch

    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**JPEG_LM_7B))
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    lines = (f"{json.dumps(name)}: {json.dumps(shape)}" for name, shape in shapes.items())
    (HERE / "names_7b.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def make_configs() -> None:
    written = {}
    for name, values in CONFIGS.items():
        with tempfile.TemporaryDirectory() as folder:
            config = transformers.LlamaConfig(**values, architectures=["LlamaForCausalLM"])
            config.save_pretrained(folder)
            written[name] = json.loads((pathlib.Path(folder) / "config.json").read_text())
    text = json.dumps(written, indent=1)
    (HERE / f"configs_{transformers.__version__}.json").write_text(text + "\n")


if __name__ == "__main__":
    steps = {"checkpoint": make_checkpoint, "names": make_names, "configs": make_configs}
    if sys.argv[1:2] and sys.argv[1] in steps:
        steps[sys.argv[1]]()
    else:
        sys.exit(__doc__)
