"""The JPEG representation: images as the bytes of baseline JPEG files (ITU-T T.81)."""
