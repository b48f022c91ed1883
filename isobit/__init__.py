"""A tensor-parallel runtime for quantized language models, with the same bits at every size."""
