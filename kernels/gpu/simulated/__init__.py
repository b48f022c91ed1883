"""GPUs without CUDA: kernels in Triton's interpreter, memory of the host. Imports triton."""
