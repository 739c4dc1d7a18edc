"""From shards and a plan to batches on a mesh."""
