"""A Llama on the codes of a learned tokenizer, and the tokenizer. `--config=configs/vq.py:PRESET`

For `python -m jpeglm_jax.train`, which trains the tokenizer first unless representation.weights or
data.shards name what is there:

  digits                (default) handwritten digits on a laptop's CPU, in minutes
  cifar10               32x32 photos on one GPU

For `python -m jpeglm_jax.train_tokenizer`:

  tokenizer_digits      16 codes for a digit of 16x16 pixels, on a laptop's CPU, in minutes
  tokenizer_photos32    256 codes for 32x32 photos of your own, on a laptop's CPU, in ten minutes
  tokenizer_cifar10     256 codes for a photo of 32x32 pixels, on one GPU
  tokenizer_imagenet64  256 codes for a photo of 64x64 pixels, on one node of eight GPUs

Any value can be changed on the command line: `--config.quantizer.codes=512` of a tokenizer, or
`--config.tokenizer.quantizer.codes=512` of the one that a model trains first.
"""

from ml_collections import ConfigDict

from configs import jpeg


def get_config(preset: str = "digits") -> ConfigDict:
    """The configuration of a preset. Raises ValueError for a name that is not one."""
    if preset not in PRESETS | TOKENIZERS:
        known = ", ".join([*PRESETS, *TOKENIZERS])
        raise ValueError(f"configs/vq.py has no preset {preset!r}; it has {known}")
    config = base() if preset in PRESETS else tokenizer_base()
    config.preset = preset
    (PRESETS | TOKENIZERS)[preset](config)
    return config


def base() -> ConfigDict:
    """The defaults of all models; other options as for JPEG files."""
    config = jpeg.base()
    config.representation = ConfigDict(
        dict(
            name="vq",
            size=32,  # side of a square
            mode="RGB",
            weights="",  # folder of a trained tokenizer; "": train `tokenizer` into the workdir
        )
    )
    config.tokenizer = ConfigDict()  # a preset tokenizer_*, trained if there are no weights
    return config


def tokenizer_base() -> ConfigDict:
    """The defaults of all tokenizers."""
    config = jpeg.base()
    for name in ("seq_len", "init_from", "model", "sample"):
        del config[name]
    for name in ("conditional", "label_dropout", "packing", "too_long", "train_tokenizer"):
        del config.data[name]
    for name in ("grad_accum_steps", "z_loss"):
        del config.optimizer[name]
    # The pixels to train on, as bytes that lose nothing.
    config.representation = ConfigDict(dict(name="pixel", size=32, mode="RGB", clusters=0))
    config.tokenizer = ConfigDict(
        dict(
            patch=2,  # pixels along the side of a position of the first level
            widths=(64,),  # channels of each level; each has half the side of the one before
            blocks=2,  # residual blocks of a level
            dtype="auto",  # compute type: bfloat16 on TPUs and GPUs, float32 on CPUs
        )
    )
    config.quantizer = ConfigDict(
        dict(
            name="vq",  # a codebook of unit-length codes; or "fsq": finite scalars
            codes=1024,
            code_dim=8,  # numbers of a code
            levels=(8, 5, 5, 5),  # fsq: values of each number of a code, instead of the two above
            gradient="straight_through",  # through the quantiser; or "rotation"
            commitment=0.25,  # weight of the distance of latents to their codes
            ema_decay=0.99,  # of the moving averages that move the codes
            restart_below=0.1,  # restart codes used less than this share of even use; 0: never
        )
    )
    config.loss = ConfigDict(
        dict(
            pixels="l2",  # or l1; pixels are -1 to 1
            # Of a feature function, "squeezenet" or MODULE:FUNCTION; weights: a file of your own.
            perceptual=dict(weight=0.0, features="squeezenet", weights=""),
            # Hinge loss of a discriminator that begins after this share of the steps.
            adversarial=dict(weight=0.0, start=0.5, width=64),
        )
    )
    config.optimizer.update(warmup_steps=100, b2=0.99, weight_decay=1e-4, final_fraction=0.05)
    config.optimizer.learning_rate = 1e-3
    config.mesh.update(replica=-1, fsdp=1)
    config.sample = ConfigDict(dict(every=1000, num=32))  # images above their reconstructions
    return config


def digits(c: ConfigDict) -> None:
    """Trains on scikit-learn's 1,797 handwritten digits: no download, no accelerator.

    python -m jpeglm_jax.train --config=configs/vq.py

    The model, the images and their copies are those of configs/jpeg.py. Hardware: one CPU core.
    Time: 8 minutes, with the training of the tokenizer. Result of 1,000 sampled digits: 99.0 % are
    strictly valid, 92.7 % are recognised (docs/experiments.md, 2026-11-26).
    """
    jpeg.digits(c)
    c.data.train_tokenizer.update(vocab_size=0, kind="bpe")
    c.representation = ConfigDict(dict(name="vq", size=16, mode="L", weights=""))
    c.tokenizer = get_config("tokenizer_digits")
    c.steps, c.batch_size, c.seq_len = 2000, 16, 119  # seven images per sequence
    c.sample.temperature = 1.0


def cifar10(c: ConfigDict) -> None:
    """Class-conditional 32x32 photos: 25 million parameters on the codes of CIFAR-10.

    python -m jpeglm_jax.train --config=configs/vq.py:cifar10 \
        --config.data.source=folder:CIFAR10   # one folder per class; or tfds:cifar10:train

    Model, steps and tokens per step are those of configs/jpeg.py:cifar10. Hardware: one data-centre
    GPU. Time and result: not yet measured.
    """
    representation = c.representation.to_dict()
    jpeg.cifar10(c)
    c.representation = ConfigDict(representation)
    c.tokenizer = get_config("tokenizer_cifar10")
    c.seq_len = 1028  # four images per sequence


def tokenizer_digits(c: ConfigDict) -> None:
    """Handwritten digits as 16 of 256 codes.

    python -m jpeglm_jax.train_tokenizer --config=configs/vq.py:tokenizer_digits
    """
    c.steps, c.batch_size = 1000, 64
    c.representation.update(size=16, mode="L")
    c.tokenizer.update(widths=(32, 64), blocks=1)
    c.quantizer.codes = 256
    c.data.update(source="digits", copies=8, eval_fraction=0.15)
    c.data.augment = dict(rotation=6.0, shift=0.01, scale=0.03, shear=0.06)
    c.optimizer.learning_rate = 2e-3
    c.checkpoint.every = c.evaluate.every = c.sample.every = 500


def tokenizer_photos32(c: ConfigDict) -> None:
    """Photos of 32x32 pixels as 256 of 1,024 codes, small enough for a CPU.

    python -m jpeglm_jax.train_tokenizer --config=configs/vq.py:tokenizer_photos32 \
        --config.data.source=folder:PHOTOS

    Hardware: two CPU cores. Time: 5 to 10 minutes, at 116 to 59 images per second. Result on 7,477
    photos of 100 classes: 29.98 dB on the eval split, all codes used (docs/experiments.md,
    2026-11-26).
    """
    c.steps, c.batch_size = 1000, 32
    c.tokenizer.update(widths=(64,), blocks=1)
    c.data.eval_fraction = 0.1
    c.optimizer.learning_rate = 2e-3
    c.checkpoint.every = c.evaluate.every = c.sample.every = 250


def tokenizer_cifar10(c: ConfigDict) -> None:
    """Photos of 32x32 pixels as 256 of 1,024 codes.

    python -m jpeglm_jax.train_tokenizer --config=configs/vq.py:tokenizer_cifar10 \
        --config.data.source=folder:CIFAR10

    Hardware: one data-centre GPU. Time and result: not yet measured; tokenizer_photos32 is the same
    with a smaller network.
    """
    c.steps, c.batch_size = 20_000, 256
    c.tokenizer.update(widths=(128,), blocks=4)
    c.data.update(copies=1, eval_fraction=0.02)
    c.data.augment = dict(rotation=0.0, shift=0.03, scale=0.0, shear=0.0, flip=True)
    c.data.augment.update(border="mirror", oversample=2)
    c.optimizer.update(learning_rate=1e-3, warmup_steps=500, ema=0.999)
    c.checkpoint.every = c.evaluate.every = c.sample.every = 1000


def tokenizer_imagenet64(c: ConfigDict) -> None:
    """Photos of 64x64 pixels as 256 of 4,096 codes, a quarter of the pixels to each side.

    python -m data_pipelines.prepare --config=configs/vq.py:tokenizer_imagenet64 \
        --source=tfds:imagenet2012:train --out=PIXELS
    python -m jpeglm_jax.train_tokenizer --config=configs/vq.py:tokenizer_imagenet64 \
        --config.data.shards=PIXELS --config.loss.perceptual.weight=1 \
        --config.loss.perceptual.weights=squeezenet1_0.pth --config.loss.adversarial.weight=0.1

    Hardware: one node of eight GPUs. Time and result: not yet measured.
    """
    c.steps, c.batch_size = 100_000, 256
    c.representation.size = 64
    c.tokenizer.update(widths=(128, 256), blocks=3)
    c.quantizer.codes = 4096
    c.loss.pixels = "l1"
    c.data.eval_fraction = 0.01
    c.optimizer.update(learning_rate=5e-4, warmup_steps=2000, ema=0.999)
    c.evaluate.batches = 40
    c.checkpoint.every = c.evaluate.every = c.sample.every = 5000


PRESETS = {"digits": digits, "cifar10": cifar10}
TOKENIZERS = {
    "tokenizer_digits": tokenizer_digits,
    "tokenizer_photos32": tokenizer_photos32,
    "tokenizer_cifar10": tokenizer_cifar10,
    "tokenizer_imagenet64": tokenizer_imagenet64,
}
