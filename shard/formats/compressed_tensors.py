"""compressed-tensors "pack-quantized": W4A16 and W8A16.

`weight_packed` int32 [N, ceil(K*b/32)] along K, low bits first, holding q + 2^(b-1) for a signed q;
`weight_scale` [N, G]; `weight_shape` int64 [2], the true global shape.
https://github.com/vllm-project/compressed-tensors
"""

from __future__ import annotations

from ..checkpoint import Checkpoint
from ..quantization import WeightScheme
from ..safetensors_file import SliceReader
from .codes import QuantizedSlice, unpack_words


def expected_tensors(
    module: str, n: int, k: int, scheme: WeightScheme
) -> dict[str, tuple[int, ...]]:
    return {
        f"{module}.weight_packed": (n, -(-k * scheme.bits // 32)),
        f"{module}.weight_scale": (n, scheme.groups(k)),
        f"{module}.weight_shape": (2,),
    }


def read_slice(
    checkpoint: Checkpoint,
    reader: SliceReader,
    module: str,
    scheme: WeightScheme,
    rows: slice,
    columns: slice,
) -> QuantizedSlice:
    """Read a rectangle; a stored code is already unsigned, with zero point 2^(bits-1)."""
    entries, per_word = checkpoint.entries, 32 // scheme.bits
    first_word, last_word = columns.start // per_word, -(-columns.stop // per_word)
    words = reader.read(entries[f"{module}.weight_packed"], rows, slice(first_word, last_word))
    left = columns.start - first_word * per_word
    codes = unpack_words(words, scheme.bits)[:, left : left + columns.stop - columns.start]
    scales = entries[f"{module}.weight_scale"]
    if scales.shape[1] == 1:
        first_group, last_group = 0, 1
    else:
        first_group = columns.start // scheme.group_size
        last_group = -(-columns.stop // scheme.group_size)
    return QuantizedSlice(
        codes=codes,
        scales=reader.read(scales, rows, slice(first_group, last_group)),
        zeros=None,
        first_group=first_group,
    )
