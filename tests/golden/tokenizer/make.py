"""Makes the golden ids: what `transformers` gives for fixed documents under fixed models.

    python tests/golden/tokenizer/make.py models   # in the project's environment
    python tests/golden/tokenizer/make.py ids      # in one with transformers, sentencepiece
                                                   # and, for transformers 5, protobuf

`models` writes three SentencePiece models and `documents.json`; needed only if the kinds of model
or document change. `ids` writes `ids_transformers_VERSION.json` with the installed version; run it
under 4.38.2 and under the newest 5, and delete the file of the version that is replaced.

A difference between these ids and the project's is a fault of the project as long as the models and
documents are the committed ones: `transformers` is the reference. Renew the files only with the
models, and say in the commit why these changed.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import sentencepiece

FOLDER = Path(__file__).parent
MODELS = ("trained_here", "dummy_prefix", "unknown_prefix")


def characters(data: bytes) -> str:
    return "".join(chr(10240 + byte) for byte in data)


def make_models() -> None:
    from data_pipelines.representations import tokenizer

    corpus = _jpeg_documents(200)
    uniform = _random_bytes(30_000)
    # With uniform bytes beside them, all 256 characters pass the default character_coverage, and a
    # dummy prefix that occurs once in 65,000 characters does not.
    models = {
        "trained_here": tokenizer.train_bpe([*corpus, uniform]),
        "dummy_prefix": _train_with_defaults([*corpus, uniform], character_coverage=1.0),
        "unknown_prefix": _train_with_defaults([b"".join(corpus)[:35_000] + uniform]),
    }
    for name, model in models.items():
        (FOLDER / f"{name}.model").write_bytes(model)
    documents = [
        b"",
        b"\x00",
        bytes(range(256)),
        b"\x00" * 100,
        b"\xff" * 101,
        b"".join(b"\x7f\xff" + bytes([0xD0 + i % 8]) for i in range(40)),
        b"".join(b"\x28\xa2\x8a\x00\xff" + bytes([0xD0 + i % 8]) for i in range(20)),
        _random_bytes(300, seed=1),
        *_jpeg_documents(2, seed=1),
    ]
    text = json.dumps([data.hex() for data in documents], indent=1)
    (FOLDER / "documents.json").write_text(text + "\n")


def _train_with_defaults(documents: list[bytes], **options: float) -> bytes:
    """A model with SentencePiece's dummy prefix, as made by leaving its defaults."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([characters(data) for data in documents]),
        model_writer=model,
        model_type="bpe",
        vocab_size=320,
        max_sentence_length=1 << 20,
        normalization_rule_name="identity",  # the default's tables would take 240 kB here
        minloglevel=1,
        **options,
    )
    return model.getvalue()


def _random_bytes(count: int, seed: int = 0) -> bytes:
    import numpy as np

    return np.random.default_rng(seed).integers(0, 256, count, np.uint8).tobytes()


def _jpeg_documents(count: int, seed: int = 0) -> list[bytes]:
    """Files of smooth random images, 64x64, one MCU a restart, tables stripped."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(seed)
    documents = []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
        file = io.BytesIO()
        coarse.resize((64, 64), Image.Resampling.BICUBIC).save(
            file,
            "JPEG",
            quality=25,
            subsampling="4:2:0",
            streamtype=2,
            restart_marker_blocks=1,
        )
        documents.append(file.getvalue())
    return documents


def make_ids() -> None:
    import tempfile

    import transformers

    documents = [
        bytes.fromhex(text) for text in json.loads((FOLDER / "documents.json").read_text())
    ]
    ids = {}
    for name in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            model = (FOLDER / f"{name}.model").read_bytes()
            (Path(folder) / "tokenizer.model").write_bytes(model)
            tokenizer = transformers.LlamaTokenizer.from_pretrained(folder, add_bos_token=True)
            ids[name] = [tokenizer(characters(data))["input_ids"] for data in documents]
    version = transformers.__version__
    golden = {
        "made_by": "tests/golden/tokenizer/make.py ids",
        "versions": {"transformers": version, "sentencepiece": sentencepiece.__version__},
        "ids": ids,
    }
    (FOLDER / f"ids_transformers_{version}.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    steps = {"models": make_models, "ids": make_ids}
    if sys.argv[1:2] and sys.argv[1] in steps:
        steps[sys.argv[1]]()
    else:
        sys.exit(__doc__)
