"""The choice of code is said aloud, can be forced, and never falls back in silence."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest

from isobit.errors import EnvironmentFault
from isobit.kernels import ops
from isobit.kernels.native import REASONS, native

SHOW = "from isobit.kernels import ops; print(ops.backend()['isa'])"


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_backend_names_the_set(isa: str) -> None:
    told = ops.backend()
    assert told["device"] == "cpu" and told["isa"] == isa
    assert told["reason"].startswith(REASONS[isa])
    assert ("by hand" in told["reason"]) == (isa != ops.available_isas()[0])


def test_vnni_is_used_where_the_set_has_it(isa: str) -> None:
    # A machine that has VNNI lists the set named after it, and only there does BF16 bring it along.
    has = "avx512_vnni" in ops.available_isas()
    expected = isa == "avx512_vnni" or (isa == "avx512_bf16" and has)
    assert ops.backend()["vnni"] == ("yes" if expected else "no")


def test_every_machine_has_the_baseline() -> None:
    assert ops.available_isas()[-1] == "baseline"


def test_a_set_the_machine_lacks() -> None:
    with pytest.raises(EnvironmentFault, match="E-KERNEL-ISA this machine cannot run amx"):
        ops.set_isa("amx")


def test_threads_must_be_positive() -> None:
    with pytest.raises(EnvironmentFault, match="E-KERNEL-THREADS"):
        ops.set_threads(0)


def test_the_environment_forces_a_set() -> None:
    assert python(SHOW, ISOBIT_CPU_ISA="baseline").stdout.strip() == "baseline"
    refused = python(SHOW, ISOBIT_CPU_ISA="sse9")
    assert refused.returncode and "E-KERNEL-ISA this machine cannot run sse9" in refused.stderr


def test_the_choice_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    native.cache_clear()
    with caplog.at_level(logging.INFO, logger="isobit.kernels.native"):
        ops.backend()
        ops.backend()
    assert len(caplog.records) == 1 and ops.available_isas()[0] in caplog.text


def test_a_missing_module_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    import isobit.kernels

    monkeypatch.delattr(isobit.kernels, "_cpu", raising=False)
    monkeypatch.setitem(sys.modules, "isobit.kernels._cpu", None)
    native.cache_clear()
    with pytest.raises(EnvironmentFault, match="E-KERNEL-MISSING"):
        ops.backend()
    native.cache_clear()


def test_nothing_on_a_cpu_imports_triton() -> None:
    code = (
        "import sys, isobit.launch.cli.main, isobit.runtime.worker.worker;"
        "print(sorted(m for m in sys.modules if m.split('.')[0] == 'triton' or '.gpu.' in m))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == (
        "['isobit.kernels.gpu.card', 'isobit.kernels.gpu.weight']\n",
        "",
    )
