"""Every CUDA kernel compiled for every architecture, without a GPU."""
