"""Two Ray nodes whose folders differ: refused in seconds, then served from the driver's files.

Both nodes are processes of this machine. Each was started in a folder of its own, which
/proc/self/cwd leads to: one path of a model, and other files on each node.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from isobit.errors import InputError
from isobit.launch.cluster.ray.launcher import RayLauncher
from isobit.launch.cluster.ray.session import ray_session
from isobit.runtime.engine.engine import Engine
from isobit.runtime.settings.engine import EngineSettings, SamplingSettings
from isobit.runtime.settings.model_files import ModelFiles
from isobit.runtime.transport.address import Address
from isobit.shard.plan.plan import PlanSettings

from ...support import INT4, all_logits

pytestmark = pytest.mark.long

MODEL = Path("/proc/self/cwd/model")
IDS = [1, 2, 3]


class TwoHosts(RayLauncher):
    """Nodes of one machine share its address, and would pass for one host."""

    def address(self) -> Address:
        return Address(host="127.0.0.1")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """The folders of two nodes with one core each; the driver is in the first, with the model."""
    from ray.cluster_utils import Cluster

    boxes = [tmp_path_factory.mktemp(name) for name in ("box0", "box1")]
    shutil.copytree(INT4, boxes[0] / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        cluster = Cluster()
        try:
            for box in boxes:
                patch.chdir(box)
                patch.setenv("ISOBIT_CACHE", str(box / "cache"))
                cluster.add_node(num_cpus=1)
            patch.chdir(boxes[0])
            patch.setenv("ISOBIT_CACHE", str(boxes[0] / "driver"))
            with ray_session(cluster.address, 2):
                yield SimpleNamespace(boxes=boxes)
        finally:
            cluster.shutdown()


def next_token(mode: ModelFiles) -> int:
    settings = EngineSettings(plan=PlanSettings(degree=2), dtype="float32", model_files=mode)
    with Engine(MODEL, settings, TwoHosts()) as engine:
        return engine.generate([IDS], [SamplingSettings(max_tokens=1)]).completions[0].tokens[0]


def test_a_node_without_the_model_is_refused_and_then_served(nodes):
    with pytest.raises(InputError) as raised:
        next_token("auto")
    assert raised.value.code == "E-MODEL-MISSING"
    assert f"{os.uname().nodename} (rank 1): {MODEL}: no such folder" in raised.value.message
    assert next_token("head") == all_logits(INT4, IDS, "float32")[-1].argmax()
    [fetched] = (nodes.boxes[1] / "cache" / "models").glob("*/model.safetensors")
    assert fetched.read_bytes() == (INT4 / "model.safetensors").read_bytes()
    assert not (nodes.boxes[0] / "cache" / "models").exists()
