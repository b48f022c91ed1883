"""The bits of an output element depend on its own row, column and atom, and on nothing else."""

from __future__ import annotations

import itertools
import multiprocessing
import threading
from collections.abc import Callable

import pytest
import torch

from isobit.kernels import ops
from isobit.kernels.weights import layout

Maker = Callable[..., layout.PackedWeight]

RUNS = [(i, min(i + 24, 203)) for i in range(0, 203, 24)]


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bit by bit: -0 is not 0."""
    view = {2: torch.int16, 4: torch.int32}[a.element_size()]
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(view), b.contiguous().view(view))


@pytest.fixture(params=["int4", "int4-zeros", "int8", "int8-zeros", "bf16", "fp16", "fp32"])
def weight(request: pytest.FixtureRequest, quantized: Maker) -> layout.PackedWeight:
    kind = request.param
    if kind.startswith("int"):
        return quantized(91, RUNS, [0, 3, 3, 9], bits=int(kind[3]), zeros=kind.endswith("zeros"))
    values = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[kind]
    return layout.pack_dense(torch.randn(91, 203).to(values), segments=[0, 72, 72, 203])


@pytest.mark.usefixtures("isa")
def test_rows_do_not_see_each_other(weight: layout.PackedWeight, dtype: torch.dtype) -> None:
    x = torch.randn(513, 203).to(dtype)
    whole = ops.linear(x, weight)
    for begin, end in ((0, 1), (511, 512), (512, 513), (100, 105), (7, 71)):
        assert same(ops.linear(x[begin:end], weight), whole[:, begin:end])
    x[3] = float("nan")
    assert same(ops.linear(x, weight)[:, 4:], whole[:, 4:])


@pytest.mark.usefixtures("isa")
def test_threads_do_not_show(weight: layout.PackedWeight, dtype: torch.dtype) -> None:
    for m in (1, 9):
        x = torch.randn(m, 203).to(dtype)
        ops.set_threads(1)
        one = ops.linear(x, weight)
        for threads in (2, 3):
            ops.set_threads(threads)
            assert same(ops.linear(x, weight), one)


@pytest.mark.usefixtures("isa")
def test_columns_and_atoms_owned_elsewhere_do_not_show(dtype: torch.dtype) -> None:
    """What a rank computes for its part is what a rank that owns everything computes for it."""
    codes = torch.randint(0, 16, (96, 203), dtype=torch.uint8)
    scales, zeros = torch.rand(96, 9), torch.randint(0, 16, (96, 9), dtype=torch.uint8)
    whole = layout.pack_quantized(codes, scales, zeros, bits=4, runs=RUNS, segments=[0, 2, 5, 9])
    for m in (1, 6):
        x = torch.randn(m, 203).to(dtype)
        out = ops.linear(x, whole)
        columns = slice(37, 80)
        part = layout.pack_quantized(
            codes[columns],
            scales[columns],
            zeros[columns],
            bits=4,
            runs=RUNS,
            segments=[0, 2, 5, 9],
        )
        assert same(ops.linear(x, part), out[:, :, columns])
        for atom, (first, last) in enumerate(itertools.pairwise([0, 2, 5, 9])):
            begin, end = RUNS[first][0], RUNS[last - 1][1]
            part = layout.pack_quantized(
                codes[:, begin:end].contiguous(),
                scales[:, first:last],
                zeros[:, first:last],
                bits=4,
                runs=[(a - begin, b - begin) for a, b in RUNS[first:last]],
                segments=[0, last - first],
            )
            assert same(ops.linear(x[:, begin:end].contiguous(), part)[0], out[atom])


@pytest.mark.usefixtures("isa")
def test_padding_does_not_show(dtype: torch.dtype) -> None:
    """Groups and columns of zero points, and activations behind them, change no bit."""
    codes = torch.randint(0, 16, (40, 96), dtype=torch.uint8)
    scales, zeros = torch.rand(40, 3), torch.randint(0, 16, (40, 3), dtype=torch.uint8)
    runs = [(0, 32), (32, 64), (64, 96)]
    true = layout.pack_quantized(codes, scales, zeros, bits=4, runs=runs, segments=[0, 3])
    padded = layout.pack_quantized(
        torch.cat([torch.cat([codes, zeros[:, :1].expand(-1, 64)], 1), torch.full((9, 160), 8)])
        .to(torch.uint8)
        .contiguous(),
        torch.cat([torch.cat([scales, torch.ones(40, 2)], 1), torch.ones(9, 5)]),
        torch.cat([torch.cat([zeros, zeros[:, :1].expand(-1, 2)], 1), torch.full((9, 5), 8)]).to(
            torch.uint8
        ),
        bits=4,
        runs=[*runs, (96, 128), (128, 160)],
        segments=[0, 5],
    )
    for m in (1, 5):
        x = torch.randn(m, 160).to(dtype)
        out = ops.linear(x, padded)
        assert same(out[:, :, :40], ops.linear(x[:, :96].contiguous(), true))
        assert out[:, :, 40:].eq(0).all()


@pytest.mark.usefixtures("isa")
def test_the_order_of_additions_is_the_contract(quantized: Maker) -> None:
    """acc = fma(scale, g, acc) run by run, where every g is exact."""
    weight = quantized(32, [(0, 16), (16, 40), (40, 48)], [0, 3])
    x = torch.randint(-4, 5, (3, 48)).bfloat16()
    codes, scales, _ = layout.unpack(weight)
    assert scales is not None
    total = torch.zeros(3, 32)
    for run, (begin, end) in enumerate([(0, 16), (16, 40), (40, 48)]):
        g = x[:, begin:end].double() @ (codes[:, begin:end].double() - 8).T
        product = g * scales[:, run].double()
        # A product of two fp32 numbers is exact in float64, and so is this sum in all but the
        # rarest draw: one rounding to fp32 stands for the fused one.
        fused = (product + total.double()).float()
        total = fused if ops.backend()["isa"] != "baseline" else product.float() + total
    assert same(ops.linear(x, weight)[0], total)


@pytest.mark.usefixtures("isa")
def test_a_caller_that_flushes_denormals_does_not_show() -> None:
    gate, up = torch.full((4, 40), 64.0), torch.full((4, 40), 1e-40)
    if not torch.set_flush_denormal(True):
        pytest.skip("torch cannot flush denormals here")
    try:
        for threads in (1, 2):
            ops.set_threads(threads)
            assert ops.silu_mul(gate, up, torch.float32).view(torch.int32).ne(0).all()
    finally:
        torch.set_flush_denormal(False)


def _child(x: torch.Tensor, weight: layout.PackedWeight, queue: multiprocessing.Queue) -> None:
    ops.set_threads(3)  # ends the threads it knows of; those of its parent did not come along
    queue.put(ops.linear(x, weight).view(torch.int32).sum().item())


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
def test_a_forked_child_computes_too(quantized: Maker) -> None:
    weight = quantized(300, RUNS, [0, 9])
    x = torch.randn(2, 203).bfloat16()
    ops.set_threads(2)
    here = ops.linear(x, weight)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_child, args=(x, weight, queue))
    child.start()
    try:
        assert queue.get(timeout=120) == here.view(torch.int32).sum().item()
        child.join(timeout=120)
        assert child.exitcode == 0
    finally:
        child.kill()


def test_two_python_threads_at_once(quantized: Maker) -> None:
    weight = quantized(300, RUNS, [0, 9])
    x = torch.randn(4, 203).bfloat16()
    ops.set_threads(2)
    expected = ops.linear(x, weight)
    wrong = []

    def work() -> None:
        wrong.extend(i for i in range(100) if not same(ops.linear(x, weight), expected))

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []
