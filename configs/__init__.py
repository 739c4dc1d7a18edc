"""What to run, as plain values: one file a representation, presets by argument."""
