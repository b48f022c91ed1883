"""Text from files, samples and datasets, cut into windows of token ids."""
