"""Writes prompts.npz: the prompts of JPEG-LM's released script, by the versions that it names.

    python3.11 -m venv venv && venv/bin/pip install \
        pillow==10.2.0 transformers==4.38.2 sentencepiece==0.1.99 'numpy<2'
    venv/bin/python tests/golden/prompts/make.py

What is done here is what that script (xhan77/jpeg-lm, run.py) does between opening a picture and
the ids it hands to the model, at its settings: the middle square as torchvision's
RandomResizedCrop(256, scale=(1, 1), ratio=(1, 1)) takes it where no random place fits, Pillow's
encoder without tables and with a marker after each MCU, the cut by its regular expression, and the
slow tokenizer of `transformers`. The SentencePiece models are those of ../tokenizer.

A difference between these ids and the project's is a fault of the project. Renew them only with the
pictures or the models.
"""

import io
import pathlib
import re
import tempfile

import numpy as np
import PIL
import transformers
from pictures import RATIOS, SIZES, draw
from PIL import Image

HERE = pathlib.Path(__file__).parent
MODELS = ("trained_here", "dummy_prefix")


def middle_square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return square.resize((256, 256), Image.Resampling.BILINEAR)


def text(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=25, subsampling="4:2:0", streamtype=2, restart_marker_blocks=1)
    return "".join(chr(10240 + byte) for byte in file.getvalue())


def cut(text: str, ratio: float) -> str:
    """Up to the n-th FFD7, which must be there: where it is not, this search takes forever."""
    marker = "\u28ff\u28d7"
    found = re.search(f"({marker}(?:.*?{marker}){{{int(32 * ratio) - 1}}})", text)
    assert found
    return text[: found.end()]


def main() -> None:
    assert (PIL.__version__, transformers.__version__) == ("10.2.0", "4.38.2")
    prompts = {}
    for model in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            data = (HERE.parent / "tokenizer" / f"{model}.model").read_bytes()
            (pathlib.Path(folder) / "tokenizer.model").write_bytes(data)
            tokenizer = transformers.LlamaTokenizer.from_pretrained(folder, add_eos_token=True)
        for name in SIZES:
            whole = text(middle_square(draw(name).convert("RGB")))
            for ratio in RATIOS:
                ids = [tokenizer.bos_token_id]
                if ratio > 0:
                    ids += tokenizer(cut(whole, ratio), add_special_tokens=False)["input_ids"]
                prompts[f"{model}/{name}/{ratio}"] = np.array(ids, np.uint16)
    np.savez_compressed(HERE / "prompts.npz", **prompts)
    print({name: len(ids) for name, ids in prompts.items()})


if __name__ == "__main__":
    main()
