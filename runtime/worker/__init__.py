"""One rank: its life as a process, its shard, its answer to each message."""
