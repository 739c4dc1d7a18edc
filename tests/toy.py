"""A representation without bytes, tokenizer or file: what the rest of the project may rely on."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from data_pipelines.representations.base import Representation, Validity
from data_pipelines.representations.fixed_length import FixedLengthMachine, make_machine

NAME = "tests.toy:ToyRepresentation"


@dataclasses.dataclass(frozen=True)
class ToyRepresentation(Representation):
    """Grey images as the levels of a grid of cells, row by row, brightest and darkest 0 and 1.

    The levels are an artefact: a table that the meaning of the tokens needs besides the options.
    """

    side: int = 4
    levels: tuple[int, ...] = (0, 85, 170, 255)
    num_labels: int = 0

    name: ClassVar[str] = NAME

    @property
    def num_codes(self) -> int:
        return len(self.levels)

    @property
    def mode(self) -> Any:
        return "L"

    @property
    def fixed_size(self) -> tuple[int, int]:
        return (self.side, self.side)

    @property
    def artifacts(self) -> dict[str, bytes]:
        return {"levels.bin": bytes(self.levels)}

    @classmethod
    def from_config(cls, config, artifacts):
        levels = artifacts.get("levels.bin")
        if levels is None or len(levels) != config["num_levels"]:
            raise ValueError("the artefact levels.bin is missing or another one")
        return cls(config["side"], tuple(levels), config["num_labels"])

    def to_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "side": self.side,
            "num_levels": len(self.levels),
            "levels_sum": sum(self.levels),
            "num_labels": self.num_labels,
        }

    def fit(self, media: Image.Image) -> Image.Image:
        return super().fit(media).resize(self.fixed_size, Image.Resampling.BOX)

    def encode(self, media: Image.Image) -> np.ndarray:
        distance = np.abs(np.asarray(self.fit(media), int)[..., None] - np.array(self.levels))
        return distance.argmin(-1).reshape(-1).astype(self.token_dtype)

    def decode(self, tokens: np.ndarray) -> Image.Image:
        tokens = np.asarray(tokens)[: self.side**2]
        if not len(tokens) or (tokens >= self.num_codes).any():
            raise ValueError("no cell, or a token that stands for no level")
        cells = np.full(self.side**2, 128, np.uint8)
        cells[: len(tokens)] = np.array(self.levels, np.uint8)[tokens]
        return Image.fromarray(cells.reshape(self.side, self.side))

    def prompt(self, tokens: np.ndarray, ratio: float) -> np.ndarray:
        return tokens[: int(ratio * self.side) * self.side]

    def validate(self, tokens: np.ndarray) -> Validity:
        good = int(np.cumprod(np.asarray(tokens) < self.num_codes).sum())
        expected = self.side**2
        valid = good == len(tokens) == expected
        return Validity(valid, min(good, expected), expected, "" if valid else f"cell {good}")

    def token_machine(self, size: tuple[int, int] | None = None) -> FixedLengthMachine:
        return make_machine(self.side**2, self.num_codes, self.vocab_size)
