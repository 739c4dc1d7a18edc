"""Sources of media: `open_source(spec)` by one line of text.

    digits                         scikit-learn's handwritten digits
    folder:PATH                    image files below a folder
    tar:GLOB                       image files in tars, as WebDataset lays them out
    tfds:NAME[/CONFIG][:SPLIT]     a prepared TensorFlow dataset
    parquet:GLOB                   a Hugging Face dataset with an image column

A source lists its items (key, locator, label) without decoding them, and reads the encoded bytes
of one by its locator, at random and from any process.
"""

from __future__ import annotations

from data_pipelines.sources.base import Item, Locator, Reject, Source, SourceError
from data_pipelines.sources.registry import open_source

__all__ = ["Item", "Locator", "Reject", "Source", "SourceError", "open_source"]
