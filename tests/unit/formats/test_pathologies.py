"""The made pathologies: transformers computes what it did, unless numbers are rounded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from ...pathologies import (
    GROUP,
    KINDS,
    OVERFLOWING_LAYER,
    SOURCE,
    make,
    rescale,
    strongest,
)

IDS = torch.randint(0, 2000, (2, 96), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pathologies")
    return {kind: make(kind, folder / kind) for kind in KINDS} | {"plain": SOURCE}


def load(folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def logits(folder: Path, dtype: torch.dtype) -> torch.Tensor:
    with torch.no_grad():
        return load(folder, dtype)(IDS).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_equal_to_the_bit(
    folders: dict[str, Path], kind: str, dtype: torch.dtype
) -> None:
    assert torch.equal(logits(folders[kind], dtype), logits(folders["plain"], dtype))


@pytest.mark.parametrize("kind", KINDS)
def test_the_folder_says_what_its_source_says(folders: dict[str, Path], kind: str) -> None:
    for path in SOURCE.glob("*.json"):
        assert json.loads((folders[kind] / path.name).read_text()) == json.loads(path.read_text())


def test_float16_overflows_in_the_product_of_one_mlp_alone(folders: dict[str, Path]) -> None:
    model = load(folders["overflow"], torch.float16)
    infinite: dict[str, bool] = {}

    def note(name: str, tensor: torch.Tensor) -> None:
        # The first overflow makes NaN of all that comes after it.
        if not tensor.isfinite().all() and not infinite:
            infinite[name] = bool(tensor.isinf().any())

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, x, n=name: note(f"{n}.in", x[0]))
            module.register_forward_hook(lambda _, __, y, n=name: note(f"{n}.out", y))
    with torch.no_grad():
        last = model(IDS).logits[:, -1]
    assert infinite == {f"model.layers.{OVERFLOWING_LAYER}.mlp.down_proj.in": True}
    assert last.isnan().all()  # argmax over NaN is token 0, "!"


def test_a_skewed_group_has_one_large_column(folders: dict[str, Path]) -> None:
    state = load(folders["skewed"], torch.float32).state_dict()
    columns = state["model.layers.1.mlp.down_proj.weight"].norm(dim=0).view(-1, GROUP)
    highest = columns.topk(2, dim=1).values
    assert (highest[:, 0] > 4 * highest[:, 1]).all()


def test_channels_of_v_reach_every_query_head() -> None:
    model = load(SOURCE, torch.float32)
    config, wanted = model.config.to_dict(), logits(SOURCE, torch.float32)
    state = model.state_dict()
    strong = strongest(state, config, 2, "values")
    assert sorted(strong.tolist()) == list(range(96))
    rescale(state, config, 2, "values", strong[:20], 32)
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, wanted)
