"""What colour clusters lose: PSNR of images after the nearest of so many colours.

    python -m benchmarks.clusters --source=digits --size=16 --mode=L --clusters=4,8,16,32,64

Clusters are trained on 1,000 random images of the source, and 300 others are encoded and decoded.
Prints a line for each number of clusters.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator

import numpy as np

from data_pipelines.representations.pixel.representation import PixelRepresentation
from data_pipelines.sources import open_source

_TRAINED_ON, _ENCODED = 1000, 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--source", default="digits", help="see data_pipelines.sources")
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--mode", default="RGB", choices=("RGB", "L"))
    parser.add_argument("--clusters", default="4,8,16,32,64", help="numbers, with commas between")
    args = parser.parse_args()
    base = PixelRepresentation(size=args.size, mode=args.mode, clusters=0)
    for clusters, psnr in losses(args.source, base, [*map(int, args.clusters.split(","))]):
        print(f"{clusters:6,} clusters: {psnr:.1f} dB", flush=True)


def losses(spec: str, base: PixelRepresentation, numbers: list[int]) -> Iterator[tuple[int, float]]:
    """Yields (clusters, PSNR in dB) for each number of clusters."""
    source = open_source(spec, "image")
    items = list(source.items())
    order = np.random.default_rng(0).permutation(len(items))[: _ENCODED + _TRAINED_ON]
    images = [next(base.open(source.read(items[n].locator))) for n in order]
    for clusters in numbers:
        made = dataclasses.replace(base, clusters=clusters)
        made = made.trained([made.training_sample(image) for image in images[_ENCODED:]])
        errors = []
        for image in images[:_ENCODED]:
            decoded = np.asarray(made.decode(made.encode(image)), np.float64)
            errors.append(np.square(decoded - np.asarray(made.fit(image))).mean())
        yield clusters, 10 * np.log10(255**2 / np.mean(errors))


if __name__ == "__main__":
    main()
