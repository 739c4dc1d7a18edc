"""Comparisons of representations at equal budgets. `--config=configs/compare.py:PRESET`

  digits           (default) handwritten digits at 16x16: JPEG bytes, JPEG code words, pixels, VQ
  photos32         photos at 32x32, quality 25: the same; --config.data.source names the photos
  cifar10          the same with 40 million parameters, on one GPU
  digits_tokens    digits: six tokenizers of the same JPEG files, two sizes of model
  photos32_tokens  photos at 32x32: the same six
  photos64_tokens  photos at 64x64: the same six, one budget
  ablations        photos at 32x32: one change of the JPEG files in each line, two sizes of model

`python -m evals.compare` runs them. Any value can be changed on the command line:
`--config.images=10000`.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import jpeg, vq

SMALL = dict(layers=4, width=128, heads=4, kv_heads=4, head_dim=32, ffn=384)
MIDDLE = dict(layers=6, width=192, heads=6, kv_heads=6, head_dim=32, ffn=512)


def get_config(preset: str = "digits") -> ConfigDict:
    """The configuration of a preset. Raises ValueError for a name that is not one."""
    if preset not in PRESETS:
        raise ValueError(
            f"configs/compare.py has no preset {preset!r}; it has {', '.join(PRESETS)}"
        )
    config = base()
    config.preset = preset
    PRESETS[preset](config)
    return config


def base() -> ConfigDict:
    """What all comparisons share: the data, the model, the optimizer and the evaluation."""
    defaults = jpeg.base()
    data = defaults.data
    data.update(conditional=True, eval_fraction=0.1)
    optimizer = defaults.optimizer
    optimizer.update(warmup_steps=100, final_fraction=0.02)
    return ConfigDict(
        dict(
            preset="",
            data=data,  # as of a training run; `source` is what is compared on
            candidates=dict(),  # name -> see `candidate`
            models=dict(small=SMALL),  # name -> fields of `config.model`; the smallest is tuned
            optimizer=optimizer,
            seq_len=512,  # positions of a row; longer documents get longer rows, and fewer
            batch_size=4,  # rows per step
            images=20_000,  # images seen by every candidate: the first budget
            flops_of="",  # the candidate whose training FLOPs at that budget are the second one
            budgets=("images", "flops"),
            seed=0,
            repeated=dict(model="small", seeds=3, candidates=()),  # at equal FLOPs
            learning_rates=(3e-3, 6e-3, 1.2e-2),
            sweep=0.25,  # share of the steps at equal FLOPs that each learning rate is tried for
            overfit=dict(documents=8, max_steps=1000),
            sample=dict(
                num=1000,
                batch_size=64,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                min_p=0.0,
                guidance=1.0,
            ),
            completion=dict(ratios=(0.25, 0.5, 0.75), num=0, candidates=()),
            # The paper's analyses: two candidates by class frequency; some on small elements.
            long_tail=(),
            small_elements=(),
            features=dict(name="digits", weights="", dims=768),  # no name: samples are not scored
            # Images of each class that samples are compared with: all classes are sampled equally
            # often. 0: all images of the source.
            references_per_class=0,
            recognise=False,  # whether samples are digits, to be recognised
        )
    )


def candidate(
    representation: dict[str, Any],
    vocab_size: int = 0,
    kind: str = "bpe",
    bits: str = "",
    tokenizer: str = "",
    conditional: bool = True,
) -> ConfigDict:
    """One representation of a comparison.

    Args:
      representation: options of `representations.make`, with its name.
      vocab_size, kind: of the tokenizer that preparation trains; 0 for none.
      bits: bits per image are compared among the candidates of the same non-empty name: those that
        describe the same files.
      tokenizer: the preset of configs/vq.py of the learned tokenizer that is trained first, on the
        comparison's images; "" for none.
      conditional: whether documents begin with their label, where the comparison has labels.
    """
    return ConfigDict(
        dict(
            representation=representation,
            train_tokenizer=dict(vocab_size=vocab_size, kind=kind, documents=10_000),
            bits=bits,
            tokenizer=vq.get_config(tokenizer) if tokenizer else ConfigDict(),
            conditional=conditional,
        )
    )


def tokenizers(representation: dict[str, Any]) -> ConfigDict:
    """Six tokenizers of the same files: bytes, BPE over bytes, and BPE over code words."""
    found = dict(bytes=candidate(representation, bits="files"))
    for entries in (320, 1024):
        found[f"bpe_{entries}"] = candidate(representation, entries, bits="files")
    for entries in (1024, 2048, 4096):
        found[f"codewords_{entries}"] = candidate(
            representation, entries, "codewords", bits="files"
        )
    return ConfigDict(found)


def digits(c: ConfigDict) -> None:
    """Handwritten digits: minutes on a laptop.

    python -m evals.compare --config=configs/compare.py --out=comparison
    """
    _digits_data(c)
    c.candidates = ConfigDict(
        dict(
            jpeg=candidate(_digits_jpeg(), bits="files"),
            jpeg_codewords=candidate(_digits_jpeg(), 1024, "codewords", bits="files"),
            pixel=candidate(dict(name="pixel", size=16, mode="L", clusters=16)),
            vq=candidate(dict(name="vq", size=16, mode="L"), tokenizer="tokenizer_digits"),
        )
    )
    c.seq_len, c.batch_size, c.images = 264, 5, 40_000  # an image as pixels fills a row
    c.flops_of = "jpeg"
    c.repeated.update(candidates=("jpeg", "vq"))
    c.completion.update(num=200, candidates=("jpeg", "jpeg_codewords", "pixel", "vq"))
    c.small_elements = ("jpeg", "vq")


def photos32(c: ConfigDict) -> None:
    """Photos at 32x32: JPEG, pixels and VQ on a laptop, in hours.

    python -m evals.compare --config=configs/compare.py:photos32 --out=comparison --minutes=25 \
        --config.data.source=folder:PHOTOS --config.features.weights=FILE
    """
    _photos_data(c)
    _photos32_candidates(c, "tokenizer_photos32")
    c.seq_len = 528  # two images as VQ codes fill a row
    # Half the steps of the preset: its FLOPs are part of the budget, 11 TFLOP in all.
    c.candidates.vq.tokenizer.steps = 500
    c.images = 10_000
    c.references_per_class = 20


def cifar10(c: ConfigDict) -> None:
    """Photos at 32x32 and 40 million parameters: one GPU, in pieces of less than ten minutes.

    python -m evals.compare --config=configs/compare.py:cifar10 --out=comparison --minutes=9 \
        --config.data.source=folder:CIFAR10 --config.features.weights=FILE

    Time and result: not yet measured.
    """
    _photos_data(c)
    _photos32_candidates(c, "tokenizer_cifar10")
    c.models = ConfigDict(
        dict(small=dict(layers=12, width=512, heads=8, kv_heads=8, head_dim=64, ffn=1408))
    )
    c.seq_len, c.batch_size, c.images = 1152, 96, 1_000_000
    c.learning_rates = (3e-4, 1e-3, 2e-3)
    c.optimizer.update(warmup_steps=500, ema=0.999)
    c.sample.update(num=10_000, batch_size=256)
    c.completion.num = 1000


def digits_tokens(c: ConfigDict) -> None:
    """Six tokenizers of the JPEG files of digits, at two sizes of model.

    python -m evals.compare --config=configs/compare.py:digits_tokens --out=comparison
    """
    _digits_data(c)
    c.candidates = tokenizers(_digits_jpeg())
    c.flops_of = "bytes"
    c.models = ConfigDict(dict(small=SMALL, middle=MIDDLE))
    c.repeated.update(candidates=tuple(c.candidates))


def photos32_tokens(c: ConfigDict) -> None:
    """Six tokenizers of the JPEG files of photos at 32x32, at two sizes of model.

    python -m evals.compare --config=configs/compare.py:photos32_tokens --out=comparison \
        --config.data.source=folder:PHOTOS
    """
    _photos_data(c)
    c.features.name = ""  # tokens are compared by bits and validity
    c.seq_len, c.batch_size = 528, 2  # rows that images of every tokenizer fill
    c.images = 5_000
    c.candidates = tokenizers(_photos_jpeg(32))
    c.flops_of = "bytes"
    c.models = ConfigDict(dict(small=SMALL, middle=MIDDLE))
    c.repeated.update(candidates=tuple(c.candidates))


def photos64_tokens(c: ConfigDict) -> None:
    """Six tokenizers of the JPEG files of photos at 64x64, at equal FLOPs.

    python -m evals.compare --config=configs/compare.py:photos64_tokens --out=comparison \
        --config.data.source=folder:PHOTOS
    """
    _photos_data(c)
    c.features.name = ""
    c.candidates = tokenizers(_photos_jpeg(64))
    c.flops_of = "bytes"
    c.budgets = ("flops",)
    c.seq_len, c.batch_size, c.images = 1536, 1, 1_000
    c.sample.num = 500
    c.learning_rates = (6e-3,)  # of photos32_tokens: the best for bytes, BPE, and 1,024 code words
    c.repeated.update(seeds=1)


def ablations(c: ConfigDict) -> None:
    """What each choice of the JPEG representation is worth: one change in each line.

    python -m evals.compare --config=configs/compare.py:ablations --out=comparison \
        --config.data.source=folder:PHOTOS --config.features.weights=FILE
    """
    _photos_data(c)
    files = _photos_jpeg(32)
    c.candidates = ConfigDict(
        dict(
            base=candidate(files, bits="files"),
            quality_10=candidate(files | dict(quality=10)),
            quality_50=candidate(files | dict(quality=50)),
            no_restart_markers=candidate(files | dict(restart_interval=0)),
            strip_none=candidate(files | dict(strip="none"), bits="files"),
            strip_tables=candidate(files | dict(strip="tables"), bits="files"),
            bpe_320=candidate(files, 320, bits="files"),
            codewords_2048=candidate(files, 2048, "codewords", bits="files"),
            unconditional=candidate(files, conditional=False),
        )
    )
    c.flops_of = "base"
    c.models = ConfigDict(dict(small=SMALL, middle=MIDDLE))
    c.images, c.references_per_class = 10_000, 20
    c.repeated.update(candidates=("base",))


def _digits_data(c: ConfigDict) -> None:
    c.data.update(source="digits", copies=32, eval_fraction=0.15)
    c.data.augment = dict(rotation=6.0, shift=0.01, scale=0.03, shear=0.06)
    c.seq_len, c.batch_size, c.images = 160, 8, 20_000
    c.recognise = True


def _digits_jpeg() -> dict[str, Any]:
    return dict(name="jpeg", size=16, mode="L", quality=20, strip="header")


def _photos_data(c: ConfigDict) -> None:
    c.data.update(copies=3, eval_fraction=0.1)
    c.data.augment = dict(rotation=0.0, shift=0.03, scale=0.03, shear=0.0, flip=True)
    c.data.augment.update(border="mirror")
    c.features.name = "inception"


def _photos32_candidates(c: ConfigDict, tokenizer: str) -> None:
    c.candidates = ConfigDict(
        dict(
            jpeg=candidate(_photos_jpeg(32), bits="files"),
            jpeg_codewords=candidate(_photos_jpeg(32), 2048, "codewords", bits="files"),
            pixel=candidate(dict(name="pixel", size=32, clusters=512)),
            vq=candidate(dict(name="vq", size=32), tokenizer=tokenizer),
        )
    )
    c.flops_of = "jpeg"
    c.repeated.update(candidates=("jpeg", "vq"))
    c.completion.update(num=200, candidates=("jpeg", "jpeg_codewords", "pixel", "vq"))
    c.long_tail = c.small_elements = ("jpeg", "vq")


def _photos_jpeg(size: int) -> dict[str, Any]:
    return dict(name="jpeg", size=size, quality=25, strip="header")


PRESETS = {
    "digits": digits,
    "photos32": photos32,
    "cifar10": cifar10,
    "digits_tokens": digits_tokens,
    "photos32_tokens": photos32_tokens,
    "photos64_tokens": photos64_tokens,
    "ablations": ablations,
}
