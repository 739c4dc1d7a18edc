"""Folders of image or video files, and the walk through them."""
