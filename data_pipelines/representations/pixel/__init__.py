"""The pixel representation: images as colours in raster order, without a codec."""
