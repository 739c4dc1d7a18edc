"""Sources of images and videos: `open_source(spec, kind)` opens one by its spec.

    digits                         scikit-learn's handwritten digits
    moving_digits[:CLIPS]          clips of moving digits, rendered on reading
    folder:PATH                    image or video files below a folder
    tar:GLOB                       image or video files in tars, as WebDataset lays them out
    tfds:NAME[/CONFIG][:SPLIT]     a prepared TensorFlow dataset
    parquet:GLOB                   a Hugging Face dataset with a column of images or videos

A source lists its items (key, locator, label) without decoding them, and reads the encoded bytes
of an item by its locator, in any order and from any process. Preparation lists a source once and
reads every item once.
"""

from __future__ import annotations

from data_pipelines.sources.base import Item, Locator, Reject, Source, SourceError
from data_pipelines.sources.registry import open_source

__all__ = ["Item", "Locator", "Reject", "Source", "SourceError", "open_source"]
