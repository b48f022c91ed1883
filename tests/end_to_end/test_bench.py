"""`isobit bench throughput`: the fields that tools read, and sums that must hold."""

from __future__ import annotations

import json

import pytest

from ..support import DENSE, copy_model, isobit


@pytest.mark.parametrize("degree", ["1", "2"])
def test_throughput_of_dummy_weights_from_a_config_alone(degree, tmp_path):
    model = copy_model(DENSE, tmp_path / "model")
    for path in model.iterdir():
        if path.name != "config.json":
            path.unlink()
    command = ["bench", "throughput", str(model), "-tp", degree, "--launcher", "local", "--json"]
    dummy = ["--load-format", "dummy", "--quantization", "int4", "--group-size", "32"]
    sizes = ["--batch-size", "3", "--prompt-tokens", "20", "--new-tokens", "6"]
    result = isobit(*command, *dummy, *sizes)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["decode_tokens_per_s"] == pytest.approx(3000 / found["decode_ms_per_step"])
    assert found["prefill_tokens_per_s"] == pytest.approx(60 / found["prefill_s"])
    # Of times that contain each other, whatever else this machine does.
    assert 0 <= found["collectives_share"] <= 1
    assert 0 <= found["overhead_share"] < 1
    assert found["collectives_share"] == 0 or degree == "2"
    least = 1000 * found["weights_bytes"] / (found["read_bandwidth_gb_s"] * 1e9)
    assert found["bandwidth_share"] == pytest.approx(least / found["decode_ms_per_step"])
    # 5 layers of 580608 products at half a byte, and the tied bfloat16 head of 2000 x 288.
    assert found["weights_bytes"] > 5 * 580608 // 2 + 2000 * 288 * 2
