"""Loads batches: reads the documents of planned rows and puts them on the devices of a mesh."""
