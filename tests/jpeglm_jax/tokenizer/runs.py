"""A tokenizer that trains in seconds, with every loss."""

import jax.numpy as jnp

from configs import vq


def tiny(steps=6, **changes):
    """8x8 digits as 4x4 of 16 codes; the discriminator begins at half of the steps."""
    config = vq.get_config("tokenizer_digits")
    config.steps, config.batch_size = steps, 8
    config.representation.size = 8
    config.tokenizer.update(patch=2, widths=(8,), blocks=1)
    config.quantizer.update(codes=16, code_dim=4, gradient="rotation")
    config.loss.perceptual.update(weight=0.5, features=f"{__name__}:differences")
    config.loss.adversarial.update(weight=0.1, width=8)
    config.data.copies = 0
    config.optimizer.update(warmup_steps=2, ema=0.9)
    config.log.update(every=1, tensorboard=False)
    config.evaluate.update(every=3, batches=2)
    config.sample.update(every=6, num=4)
    config.checkpoint.every = 3
    config.update_from_flattened_dict(changes)
    return config


def differences(tensors):
    """A feature function: differences of neighbouring pixels."""
    assert tensors == {}
    return lambda pixels: [jnp.diff(pixels, axis=1), jnp.diff(pixels, axis=2)]
