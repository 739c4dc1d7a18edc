"""Configurations as plain values: one file per representation, presets by argument."""
