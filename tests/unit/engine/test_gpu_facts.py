"""What a check of GPUs reads from sysfs, and the record of its passing in a home of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from isobit.launch.gpu_check import facts
from isobit.launch.gpu_check.pci import access_control, acs_state, link


def config(*capabilities: tuple[int, int, int]) -> bytes:
    """A configuration space with extended capabilities (offset, id, ACS control)."""
    space = bytearray(4096)
    ends = [offset for offset, _, _ in capabilities[1:]] + [0]
    for (offset, kind, control), following in zip(capabilities, ends, strict=True):
        space[offset : offset + 4] = (following << 20 | 1 << 16 | kind).to_bytes(4, "little")
        space[offset + 6 : offset + 8] = control.to_bytes(2, "little")
    return bytes(space)


@pytest.mark.parametrize(
    ("space", "state"),
    [
        (config((0x100, 1, 0), (0x148, 0xD, 0b11101)), "redirected"),
        (config((0x100, 0xD, 0b10001)), "direct"),
        (config((0x100, 1, 0), (0x148, 3, 0xFFFF)), ""),
        (config((0x100, 1, 0), (0x148, 3, 0))[:256], "unknown"),
        (b"", "unknown"),
    ],
)
def test_access_control_of_a_bridge(space: bytes, state: str) -> None:
    assert acs_state(space) == state


def test_bridges_above_a_gpu(tmp_path: Path) -> None:
    gpu = tmp_path / "pci0000:00" / "0000:00:01.0" / "0000:01:00.0"
    gpu.mkdir(parents=True)
    (gpu / "config").write_bytes(config((0x100, 0xD, 0xFF)))
    (gpu.parent / "config").write_bytes(config((0x100, 0xD, 0b100)))
    (gpu / "current_link_width").write_text("4\n")
    devices = tmp_path / "devices"
    devices.mkdir()
    (devices / "0000:01:00.0").symlink_to(gpu)
    assert access_control("0000:01:00.0", devices) == {"0000:00:01.0": "redirected"}
    assert access_control("0000:02:00.0", devices) == {}
    found = link("0000:01:00.0", devices)
    assert found["current_link_width"] == "4" and found["max_link_width"] == "unknown"


def test_a_machine_without_nvidia_says_so() -> None:
    found = facts.machine()
    assert found["software"]["isobit"] and found["driver"]
    clocks = facts.clocks()
    assert isinstance(clocks, list) or clocks.startswith("nvidia-smi")
