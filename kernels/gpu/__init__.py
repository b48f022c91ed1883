"""The same ops in Triton for CUDA. Nothing outside this folder imports triton."""
