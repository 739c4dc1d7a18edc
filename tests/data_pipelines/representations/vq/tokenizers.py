"""A tiny tokenizer with random weights: 8x8 grey images as 4x4 of 16 codes."""

import jax

from data_pipelines.representations.vq import network
from data_pipelines.representations.vq.config import TokenizerConfig
from data_pipelines.representations.vq.representation import VqRepresentation
from data_pipelines.representations.vq.weights import pack


def shape(**changes):
    values = dict(size=8, mode="L", patch=2, widths=(8,), blocks=1, code_dim=4, quantizer="vq")
    return TokenizerConfig(**{**values, "codes": 16, "levels": (), **changes})


def file(config=None, seed=0):
    """The bytes of a tokenizer's file."""
    config = config or shape()
    params = network.Tokenizer(config).init(jax.random.key(seed))
    return pack(config, network.flatten(params), {"seed": seed})


def representation(config=None, num_labels=0, seed=0):
    config = config or shape()
    return VqRepresentation(config.size, config.mode, file(config, seed), num_labels)
