"""The shard format: writing and reading."""
