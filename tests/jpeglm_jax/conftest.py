"""A training configuration and runs small enough to repeat many times."""

import pytest

from configs import jpeg
from tests.jpeglm_jax.runs import command, run


def tiny(steps=12, **changes):
    """The default preset with a small model and few steps: seconds instead of minutes."""
    config = jpeg.get_config("digits")
    config.steps, config.batch_size, config.seq_len = steps, 8, 80
    config.representation.quality = 5
    config.data.copies = 0
    config.data.train_tokenizer.vocab_size = 0
    config.model.update(layers=2, width=32, heads=4, kv_heads=4, head_dim=8, ffn=64)
    config.optimizer.update(warmup_steps=min(4, steps - 1))
    config.log.every = 1
    config.evaluate.every = 0
    config.sample.update(every=0, num=4)
    config.checkpoint.every = steps
    config.mesh.update(replica=1, fsdp=-1)
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="session")
def straight(digit_shards, tmp_path_factory):
    """The folder of a run that was not interrupted."""
    folder = tmp_path_factory.mktemp("straight")
    run(command(digit_shards, folder))
    return folder
