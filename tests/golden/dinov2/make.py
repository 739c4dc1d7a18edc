"""Writes golden.npz: the class tokens that `transformers` and Meta's code compute in float32.

    git clone https://github.com/facebookresearch/dinov2
    pip install torch transformers safetensors numpy
    python tests/golden/dinov2/make.py dinov2

The weights are drawn by `weights.py`, so the file holds their names and shapes and the results
alone. If the test that reads them fails, the model has changed: renew the file only if one of the
two sources changed. Made with transformers 5.24.0 and Meta's commit b8931f7.
"""

import json
import pathlib
import sys
import tempfile
import warnings

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file
from weights import CONFIG, REGISTERS, draw, images

HERE = pathlib.Path(__file__).parent
META = {
    "": {"interpolate_offset": 0.1},
    "_giant": {"interpolate_offset": 0.1, "ffn_layer": "swiglufused"},
    "_registers": {"num_register_tokens": REGISTERS, "interpolate_antialias": True},
    "_giant_registers": {
        "num_register_tokens": REGISTERS,
        "interpolate_antialias": True,
        "ffn_layer": "swiglufused",
    },
}


def of_transformers(kind, config):
    """A network with drawn weights, loaded from a file: names there are not those in memory."""
    with tempfile.TemporaryDirectory() as folder:
        kind(config).save_pretrained(folder)
        path = pathlib.Path(folder) / "model.safetensors"
        shapes = {key: list(value.shape) for key, value in load_file(path).items()}
        drawn = {key: draw(key, tuple(shape)) for key, shape in shapes.items()}
        save_file(drawn, path, {"format": "pt"})
        return kind.from_pretrained(folder).eval(), shapes


def of_meta(kind, options):
    model = kind(
        img_size=CONFIG["image_size"],
        patch_size=CONFIG["patch_size"],
        embed_dim=CONFIG["hidden_size"],
        depth=CONFIG["num_hidden_layers"],
        num_heads=CONFIG["num_attention_heads"],
        mlp_ratio=CONFIG["mlp_ratio"],
        init_values=1.0,
        block_chunks=0,
        **{"interpolate_offset": 0.0, **options},
    )
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    drawn = {key: torch.from_numpy(draw(key, tuple(shape))) for key, shape in shapes.items()}
    model.load_state_dict(drawn)
    return model.eval(), shapes


def networks(path):
    """(name, (network, shapes of its file)) of each form."""
    plain, registers = transformers.Dinov2Model, transformers.Dinov2WithRegistersModel
    yield "hf", of_transformers(plain, transformers.Dinov2Config(**CONFIG))
    giant = transformers.Dinov2Config(**CONFIG, use_swiglu_ffn=True)
    yield "hf_giant", of_transformers(plain, giant)
    options = {**CONFIG, "num_register_tokens": REGISTERS}
    config = transformers.Dinov2WithRegistersConfig(**options)
    yield "hf_registers", of_transformers(registers, config)
    sys.path.insert(0, str(path))
    warnings.simplefilter("ignore")  # xFormers is absent
    from dinov2.models.vision_transformer import DinoVisionTransformer

    for name, changes in META.items():
        yield f"meta{name}", of_meta(DinoVisionTransformer, changes)


def class_token(model, pixels):
    found = model(torch.from_numpy(pixels.transpose(0, 3, 1, 2)))
    return found if isinstance(found, torch.Tensor) else found.last_hidden_state[:, 0]


if __name__ == "__main__":
    torch.set_num_threads(1)
    golden, shapes = {}, {}
    for name, (model, of_file) in networks(pathlib.Path(sys.argv[1])):
        shapes[name] = of_file
        with torch.no_grad():
            golden[f"class_token_{name}"] = class_token(model, images()).numpy()
        print(name, float(golden[f"class_token_{name}"].std()))
    np.savez_compressed(HERE / "golden.npz", shapes=np.array(json.dumps(shapes)), **golden)
    print("transformers", transformers.__version__)
