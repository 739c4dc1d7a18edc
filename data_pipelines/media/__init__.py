"""Decodes, resizes, augments and writes images and videos; knows no codec of the project."""
