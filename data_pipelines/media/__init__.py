"""Decodes, resizes, augments and writes images and videos; has no codec of the project."""

from typing import Literal

# What a source's files are, and what a representation encodes.
Kind = Literal["image", "video"]
