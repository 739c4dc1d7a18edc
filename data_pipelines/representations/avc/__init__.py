"""H.264 streams as tokens."""
