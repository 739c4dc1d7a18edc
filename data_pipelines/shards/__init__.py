"""The shard format: `storage` writes and reads one shard, `reader` reads a complete folder."""
