"""Opening, resizing and warping images and videos."""
