"""Kernels compiled for cards that are not here: `compiled` has the rules and runs in its own
process, because Triton cannot interpret and compile in one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def made() -> Iterator[list[dict]]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-m", "tests.gpu.compiled", "few"],
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
