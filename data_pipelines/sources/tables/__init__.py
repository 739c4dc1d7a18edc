"""Parquet files: their columns, their rows, and the source."""
