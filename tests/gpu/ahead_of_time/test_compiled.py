"""Kernels compiled for cards that are not here: `compiled` has the rules and runs in its own
process, because Triton cannot interpret and compile in one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from isobit.kernels.gpu import jit
from isobit.kernels.gpu.table import BLOCKS

from ..numbers import DOCUMENT, SHOWN, found, product_table, section
from .compiled import SHARED

JIT = Path(jit.__path__[0])
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def made() -> Iterator[list[dict]]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-m", "tests.gpu.ahead_of_time.compiled", "few"],
        capture_output=True,
        text=True,
        timeout=800,
        env=environment,
        check=False,
    )
    # Status 1: a rule is broken, which the tests below are about.
    assert run.returncode in (0, 1) and run.stdout, run.stderr
    yield [json.loads(line) for line in run.stdout.splitlines()]


def test_every_architecture_is_there(made: list[dict]) -> None:
    assert {one["architecture"] for one in made} == {"sm_80", "sm_86", "sm_89", "sm_90"}


def test_no_kernel_breaks_a_rule(made: list[dict]) -> None:
    """Shared memory, registers, matrix instructions, the additions of the tree."""
    assert not {one["kernel"]: one["broken"] for one in made if one["broken"]}


def test_every_kernel_is_in_the_catalog(made: list[dict]) -> None:
    """Those that no other calls are started from Python."""
    source = "".join(path.read_text() for path in JIT.glob("*.py"))
    started = {
        name
        for name in re.findall(r"@triton\.jit.*\ndef (\w+)\(", source)
        if len(re.findall(rf"\b{name}\(", source)) == 1
    }
    assert len(started) > 10
    assert {re.split("[:,]", one["kernel"])[0] for one in made} == started


def test_every_kernel_compiles_at_the_edges_of_its_arguments(made: list[dict]) -> None:
    """Numbers of 1 become constants, and what 16 divides is known to the compiler; neither changes
    how products are added."""
    at_edges = [one for one in made if one["edge"]]
    kernels = {re.split("[:,]", one["kernel"])[0] for one in made}
    assert {re.split("[:,]", one["kernel"])[0] for one in at_edges} == kernels
    assert {one["edge"] for one in at_edges} == {
        "numbers of 1",
        "nothing that 16 divides",
        "numbers of 64 bits",
    }


def test_blocks_of_a_product_add_in_one_order(made: list[dict]) -> None:
    orders: dict[tuple[str, str], set] = {}
    for one in made:
        orders.setdefault((one["architecture"], one["same"]), set()).add(str(one["order"]))
    assert not {key: found for key, found in orders.items() if len(found) > 1}
    assert max(sum(one["same"] == same for one in made) for _, same in orders) >= 4


def test_the_matrix_unit_of_hopper_is_its_own(made: list[dict]) -> None:
    products = [one for one in made if "product" in one["kernel"]]
    for one in products:
        family = "wgmma" if one["architecture"] == "sm_90" else "mma"
        assert all(name.startswith(family) for name in one["matrix_instructions"]), one


def test_a_sum_over_peers_has_one_fence(made: list[dict]) -> None:
    """And one more where a rank gives up, whatever the number of peers."""
    sums = [one for one in made if re.match("(reduce|gather)_over_peers", one["kernel"])]
    assert {one["fences"] for one in sums} == {2}


def test_the_document_has_the_numbers_of_the_blocks(made: list[dict]) -> None:
    assert section(DOCUMENT.read_text(encoding="utf-8"), "blocks") == product_table(made)


@pytest.mark.parametrize("capability", SHOWN)
def test_wide_blocks_get_through_more_bytes_and_unpack_once(
    capability: int, made: list[dict]
) -> None:
    for blocks in BLOCKS[capability]:
        if blocks.narrow is not None:
            wide, narrow = (
                found(made, capability, f"{SHARED}, blocks of {block.rows} x {block.columns}")
                for block in (blocks.wide, blocks.narrow)
            )
            assert wide["unpacked"] == 1 and not wide["local_bytes"]
            assert wide["bytes_per_instruction"] > 1.2 * narrow["bytes_per_instruction"]
