"""Token data: prepared once into shards with a manifest, read as one global stream."""
