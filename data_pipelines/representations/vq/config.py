"""The shape of a tokenizer: what it encodes, its network and its quantiser; plain values.

It is stored with the weights, so that a file of weights is a whole tokenizer.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Self

from data_pipelines.media.images import Mode

QUANTIZERS = ("vq", "fsq")


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """The shape of a tokenizer.

    Attributes:
      size: images are squares of size x size pixels.
      mode: "RGB" or "L".
      patch: a square of patch x patch pixels is one position of the network's first level.
      widths: channels of each level; each level has half the side of the one before.
      blocks: residual blocks of a level, in the encoder and in the decoder.
      code_dim: numbers of a code; for fsq they are the levels.
      quantizer: "vq" (a learned codebook of unit-length codes) or "fsq" (finite scalars).
      codes: number of codes of "vq".
      levels: values of each number of a code of "fsq".
    """

    size: int
    mode: Mode
    patch: int
    widths: tuple[int, ...]
    blocks: int
    code_dim: int
    quantizer: str
    codes: int
    levels: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        object.__setattr__(self, "levels", tuple(self.levels))
        if self.quantizer not in QUANTIZERS:
            raise ValueError(
                f"quantizer.name is {self.quantizer!r}; expected one of {', '.join(QUANTIZERS)}"
            )
        numbers = {"size": self.size, "patch": self.patch, "blocks": self.blocks}
        numbers |= {f"widths[{i}]": width for i, width in enumerate(self.widths)}
        if self.quantizer == "vq":
            numbers |= {"code_dim": self.code_dim, "codes": self.codes}
        for name, value in numbers.items():
            if type(value) is not int or value < 1:
                raise ValueError(f"the tokenizer's {name} is {value!r}; expected 1 or more")
        if not self.widths or self.size % self.factor:
            raise ValueError(
                f"images of {self.size} x {self.size} pixels are reduced {self.factor} times (a "
                f"patch of {self.patch}, {len(self.widths)} levels), which must divide the size"
            )
        if self.quantizer == "fsq" and (not self.levels or min(self.levels) < 2):
            raise ValueError(
                f"quantizer.levels is {self.levels}; expected 2 or more for each number of a code, "
                "as in (8, 5, 5, 5)"
            )

    @property
    def factor(self) -> int:
        """Pixels along the side of the square that one code stands for."""
        return self.patch * 2 ** (len(self.widths) - 1)

    @property
    def grid(self) -> int:
        """Codes along each side of an image."""
        return self.size // self.factor

    @property
    def num_positions(self) -> int:
        """Codes of an image."""
        return self.grid**2

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return 3 if self.mode == "RGB" else 1

    @property
    def latent_dim(self) -> int:
        """Numbers of a code."""
        return len(self.levels) if self.quantizer == "fsq" else self.code_dim

    @property
    def num_codes(self) -> int:
        """How many different codes there are."""
        return math.prod(self.levels) if self.quantizer == "fsq" else self.codes

    def to_json(self) -> dict[str, Any]:
        """JSON values, from which `from_json` makes an equal value."""
        return dataclasses.asdict(self) | {"widths": [*self.widths], "levels": [*self.levels]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Raises ValueError for values that are missing, unknown or out of range."""
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"they are no values of a tokenizer: {error}") from error
