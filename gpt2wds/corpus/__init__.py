"""A corpus → shards. Never imports torch."""
