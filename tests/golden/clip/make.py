"""Writes golden.npz: what `transformers`' CLIP and its tokenizer compute of drawn weights.

    pip install torch transformers safetensors numpy && python tests/golden/clip/make.py

The weights are drawn by `weights.py`, so the file holds their names and shapes and the results
alone. If the test that reads them fails, the model has changed: renew the file only if
`transformers` itself changed. Made with transformers 5.24.0.
"""

import json
import pathlib
import tempfile

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file
from weights import MERGES, PROJECTION, TEXT, TEXTS, VISION, draw, images, vocabulary

HERE = pathlib.Path(__file__).parent


def tokenizer():
    return transformers.CLIPTokenizer(vocab=vocabulary(), merges=MERGES)


def model(folder):
    """A network with drawn weights, loaded from its file; the shapes there."""
    ids = vocabulary()
    text = {**TEXT, "vocab_size": len(ids), "eos_token_id": ids["<|endoftext|>"]}
    config = transformers.CLIPConfig(
        text_config=text, vision_config=VISION, projection_dim=PROJECTION
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    path = pathlib.Path(folder) / "model.safetensors"
    shapes = {key: list(value.shape) for key, value in load_file(path).items()}
    drawn = {key: draw(key, tuple(shape)) for key, shape in shapes.items()}
    save_file(drawn, path, {"format": "pt"})
    return transformers.CLIPModel.from_pretrained(folder).eval(), shapes


def tokens(length):
    options = {"padding": "max_length", "truncation": True, "max_length": length}
    return np.array(tokenizer()(TEXTS, **options)["input_ids"], np.int32)


def embeddings(network, pixels, ids):
    """(image embeddings, text embeddings), not normalised."""
    with torch.no_grad():
        seen = network.vision_model(torch.from_numpy(pixels.transpose(0, 3, 1, 2))).pooler_output
        read = network.text_model(torch.from_numpy(ids.astype(np.int64))).pooler_output
        return network.visual_projection(seen).numpy(), network.text_projection(read).numpy()


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        network, shapes = model(folder)
    long, ids = tokens(160), tokens(TEXT["max_position_embeddings"])
    of_images, of_texts = embeddings(network, images(), ids)
    np.savez_compressed(
        HERE / "golden.npz",
        shapes=np.array(json.dumps(shapes)),
        tokens=ids,
        long_tokens=long,
        image_embedding=of_images,
        text_embedding=of_texts,
    )
    print("transformers", transformers.__version__, of_images.std(), of_texts.std())
