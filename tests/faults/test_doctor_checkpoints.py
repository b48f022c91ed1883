"""The doctor tells what is wrong with the files, from the files alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from isobit.shard.formats.awq import NIBBLE_OF_COLUMN

from ..support import GOLDEN, INT4, copy_model, save_tensors
from .doctor_cases import DEGREES, diagnose

Tensors = dict[str, torch.Tensor]
LAYER = 3
DOWN = f"model.layers.{LAYER}.mlp.down_proj"


def change(folder: Path, edit: Callable[[Tensors], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_tensors(folder, tensors)


def label_as_v1(folder: Path) -> None:
    text = json.loads((folder / "config.json").read_text())
    text["quantization_config"]["checkpoint_format"] = "gptq"
    text["quantization_config"].pop("format", None)
    (folder / "config.json").write_text(json.dumps(text))


def edit_the_intermediate_size(folder: Path) -> None:
    text = json.loads((folder / "config.json").read_text())
    text["intermediate_size"] += 32
    (folder / "config.json").write_text(json.dumps(text))


def ignore_the_order_of_nibbles(folder: Path) -> None:
    """Codes and zero points packed one after another, as a writer that knows GPTQ only does."""

    def edit(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.endswith(("qweight", "qzeros"))]:
            words, out = tensors[name], torch.zeros_like(tensors[name])
            for column, nibble in enumerate(NIBBLE_OF_COLUMN):
                out |= ((words >> (4 * nibble)) & 15) << (4 * column)
            tensors[name] = out

    change(folder, edit)


def swap_scales_at_the_boundary(folder: Path) -> None:
    """Groups 7 and 8 of 13: the last of rank 0 and the first of rank 1 of two."""

    def edit(tensors: Tensors) -> None:
        scales = tensors[f"{DOWN}.weight_scale"]
        tensors[f"{DOWN}.weight_scale"] = scales[:, [*range(7), 8, 7, *range(9, 13)]].contiguous()

    change(folder, edit)


def forget_g_idx(folder: Path) -> None:
    def edit(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.endswith(".g_idx")]:
            tensors[name] = tensors[name].sort().values

    change(folder, edit)


def put_nan_into_a_scale(folder: Path) -> None:
    def edit(tensors: Tensors) -> None:
        tensors[f"{DOWN}.weight_scale"][5, 2] = float("nan")

    change(folder, edit)


def call_it_another_model(folder: Path) -> None:
    text = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**text, "architectures": ["MambaForCausalLM"]}))


def cut_the_file(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: -(1 << 16)])


CASES = [
    (label_as_v1, GOLDEN / "gptq-v2", "format-mislabelled", None),
    (ignore_the_order_of_nibbles, GOLDEN / "awq", "format-mislabelled", None),
    (swap_scales_at_the_boundary, INT4, "checkpoint-damaged", (LAYER, "mlp.down_proj")),
    (forget_g_idx, GOLDEN / "gptq-act-order", "format-mislabelled", None),
    (put_nan_into_a_scale, INT4, "checkpoint-damaged", (LAYER, "mlp.down_proj")),
    (edit_the_intermediate_size, INT4, "config-mismatch", None),
    (cut_the_file, INT4, "checkpoint-damaged", None),
    (call_it_another_model, INT4, "not-supported", None),
]


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize(
    ("damage", "source", "verdict", "place"), CASES, ids=[case[0].__name__ for case in CASES]
)
def test_damage_is_named(damage, source, verdict, place, degree, tmp_path):
    folder = copy_model(source, tmp_path / "model")
    damage(folder)
    report = diagnose(folder, degree).report()
    assert report["verdict"] == verdict
    if place is not None:
        assert (report["layer"], report["op"]) == place
    ran = [check["name"] for check in report["checks"] if check["status"] != "skipped"]
    assert ran == ["checkpoint"] or report["confidence"]["level"] == "medium"
