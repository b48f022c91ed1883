"""Model folders with real headers and no data: safetensors files that are one large hole."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

from isobit.shard.checkpoint.checkpoint import INDEX
from isobit.shard.checkpoint.safetensors_file import TORCH_DTYPES
from isobit.shard.contents.expected_tensors import expected_tensors
from isobit.shard.model.spec import spec_from_config

NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def write_sparse_folder(folder: Path, config: dict[str, Any], files: int) -> dict[str, int]:
    """Write every tensor that a config implies into `files` files; return the bytes of each.

    Where a format allows several dtypes the tensor gets the model's own, or the first.
    """
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    spec = spec_from_config(config, None)
    sizes, fields = {}, {}
    for name, tensor in expected_tensors(spec).items():
        own = spec.torch_dtype
        dtype = own if own in tensor.dtypes else tensor.dtypes[0]
        fields[name] = {"dtype": NAMES[dtype], "shape": list(tensor.shape)}
        sizes[name] = prod(tensor.shape) * dtype.itemsize
    names = sorted(fields)
    per_file = -(-len(names) // files)
    weight_map = {}
    for number in range(files):
        file = f"model-{number + 1:05d}-of-{files:05d}.safetensors"
        header, end = {}, 0
        for name in names[number * per_file : (number + 1) * per_file]:
            header[name] = {**fields[name], "data_offsets": [end, end + sizes[name]]}
            end += sizes[name]
            weight_map[name] = file
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            out.truncate(8 + len(text) + end)
    total = {"total_size": sum(sizes.values())}
    (folder / INDEX).write_text(json.dumps({"metadata": total, "weight_map": weight_map}))
    return sizes
