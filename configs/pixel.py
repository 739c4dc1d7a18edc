"""A Llama on pixels, the baseline of codecs. `--config=configs/pixel.py:PRESET`

  digits         (default) handwritten digits in 16 levels of grey, on a laptop's CPU, in minutes
  digits_bytes   the same in 256 levels, which lose nothing: bits per dimension
  cifar10        32x32 photos in 512 colours, as ImageGPT's, on one GPU
  cifar10_bytes  the same as bytes, three tokens per pixel: bits per dimension

Any value can be changed on the command line: `--config.optimizer.learning_rate=1e-3`.
"""

from ml_collections import ConfigDict

from configs import jpeg


def get_config(preset: str = "digits") -> ConfigDict:
    """The configuration of a preset. Raises ValueError for a name that is not one."""
    if preset not in PRESETS:
        raise ValueError(f"configs/pixel.py has no preset {preset!r}; it has {', '.join(PRESETS)}")
    config = base()
    config.preset = preset
    PRESETS[preset](config)
    return config


def base() -> ConfigDict:
    """The defaults of all presets: ImageGPT's clusters; other options as for JPEG files."""
    config = jpeg.base()
    config.representation = ConfigDict(
        dict(
            name="pixel",
            size=32,  # side of a square, or (width, height)
            mode="RGB",
            clusters=512,  # of colours, a token per pixel; 0: bytes, a token per channel
            centres="",  # path of a clusters.npy; "": trained by preparation
        )
    )
    return config


def digits(c: ConfigDict) -> None:
    """Trains on scikit-learn's 1,797 handwritten digits: no download, no accelerator.

    python -m jpeglm_jax.train --config=configs/pixel.py

    Model, images and copies are those of configs/jpeg.py, and so are the tokens of all steps, so
    the training FLOPs are about equal. An image takes 257 tokens here and about 39 there: a seventh
    of the images. Hardware: one CPU core. Time: 16 to 20 minutes. Result: 201.2 bits per image of
    the eval split; of 1,000 sampled digits 95.6 % are strictly valid and 93.1 % are recognised
    (docs/experiments.md, 2026-11-26).
    """
    jpeg.digits(c)
    c.steps, c.batch_size, c.seq_len = 3750, 8, 258  # one image with its start and end
    c.representation = ConfigDict(dict(name="pixel", size=16, mode="L", clusters=16, centres=""))
    c.data.train_tokenizer.update(vocab_size=0, kind="bpe")  # there is none; clusters are trained
    c.sample.temperature = 0.8


def digits_bytes(c: ConfigDict) -> None:
    """The digits as bytes of grey.

    python -m jpeglm_jax.train --config=configs/pixel.py:digits_bytes
    """
    digits(c)
    c.representation.clusters = 0


def cifar10(c: ConfigDict) -> None:
    """Class-conditional 32x32 photos: 25 million parameters on the colours of CIFAR-10.

    python -m jpeglm_jax.train --config=configs/pixel.py:cifar10 \
        --config.data.source=folder:CIFAR10   # one folder per class; or tfds:cifar10:train

    Model, steps and about the tokens per step are those of configs/jpeg.py:cifar10, so the training
    FLOPs are equal. An image takes 1,025 tokens here and about 208 there: a fifth of the images.
    Hardware: one data-centre GPU. Time and result: not yet measured.
    """
    representation = c.representation.to_dict()
    jpeg.cifar10(c)
    c.representation = ConfigDict(representation)
    c.seq_len = 1152  # one image per sequence, in a multiple of 128 for the attention kernels


def cifar10_bytes(c: ConfigDict) -> None:
    """The photos as bytes of red, green and blue: 3,072 tokens per image.

    python -m jpeglm_jax.train --config=configs/pixel.py:cifar10_bytes \
        --config.data.source=folder:CIFAR10

    Hardware: one data-centre GPU. Time and result: not yet measured; published models of pixels
    reach about 2.9 bits per dimension without labels (PixelRNN 3.00, Sparse Transformer 2.80).
    """
    cifar10(c)
    c.representation.clusters = 0
    c.batch_size, c.seq_len = 48, 3200


PRESETS = {
    "digits": digits,
    "digits_bytes": digits_bytes,
    "cifar10": cifar10,
    "cifar10_bytes": cifar10_bytes,
}
