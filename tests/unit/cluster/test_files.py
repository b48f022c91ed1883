"""The files that bring clusters up, read by the installed Ray, without touching a network."""

from __future__ import annotations

import re

import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from ray.autoscaler._private.util import prepare_config, validate_config

from isobit.launch.cluster.files import FOLDER, cluster_files, lines_to_edit

from ...command import command

__all__ = ["command"]

BOXES = ("two-boxes", "four-boxes")
CLOUDS = ("aws", "gcp")
RAY_UP = (*BOXES, *CLOUDS)
MOUNTED = {"~/isobit-wheel", "~/.ray/auth_token"}


def load(name: str) -> dict:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def test_every_file_is_tested():
    assert set(cluster_files()) == {*RAY_UP, "kuberay"}


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_accepts_the_file(name):
    validate_config(prepare_config(load(name)))


@pytest.mark.parametrize(("name", "workers"), [("two-boxes", 1), ("four-boxes", 3)])
def test_every_box_becomes_a_worker(name, workers):
    prepared = prepare_config(load(name))
    (kind,) = prepared["available_node_types"].values()
    assert len(prepared["provider"]["worker_ips"]) == workers
    assert kind["min_workers"] == kind["max_workers"] == prepared["max_workers"] == workers


@pytest.mark.parametrize("name", RAY_UP)
def test_token_and_wheel_are_shipped_and_the_token_is_nobody_elses(name):
    config = load(name)
    assert set(config["file_mounts"]) == MOUNTED
    assert config["setup_commands"][0] == "chmod 600 ~/.ray/auth_token"


@pytest.mark.parametrize("name", RAY_UP)
def test_every_start_of_ray_wants_the_token_and_serves_its_own_host_alone(name):
    config = load(name)
    for role in ("head", "worker"):
        stop, start = config[f"{role}_start_ray_commands"]
        assert stop == "~/isobit-venv/bin/ray stop"
        assert " RAY_AUTH_MODE=token " in start
        assert "\n" not in start.strip(), "folded into one command"
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][1]


@pytest.mark.parametrize("name", BOXES)
def test_the_head_is_started_on_the_address_that_the_provider_names(name):
    config = load(name)
    start = config["head_start_ray_commands"][1]
    assert f"--node-ip-address={config['provider']['head_ip']} " in start
    assert (
        "--node-ip-address=$(ip -o route get $RAY_HEAD_IP" in config["worker_start_ray_commands"][1]
    )


def test_aws_opens_no_port_and_runs_no_spot_machine():
    config = load("aws")
    assert set(config["provider"]["security_group"]) == {"GroupName"}, "Ray's rules, none added"
    for kind in config["available_node_types"].values():
        assert "InstanceMarketOptions" not in kind["node_config"]


def test_gcp_runs_no_machine_that_can_be_taken_away():
    for kind in load("gcp")["available_node_types"].values():
        scheduling = kind["node_config"]["scheduling"]
        assert scheduling["provisioningModel"] == "STANDARD"
        assert scheduling["onHostMaintenance"] == "TERMINATE", "GCP refuses others with GPUs"


def test_ray_reads_the_manifest_as_the_operator_hands_it_over():
    resource = load("kuberay")
    assert (resource["apiVersion"], resource["kind"]) == ("ray.io/v1", "RayCluster")
    resource["metadata"]["namespace"] = "default"
    config = _derive_autoscaling_config_from_ray_cr(resource)
    validate_config(config)
    kinds = config["available_node_types"]
    assert [kinds[name]["resources"]["GPU"] for name in ("headgroup", "boxes")] == [4, 4]
    assert kinds["boxes"]["min_workers"] == kinds["boxes"]["max_workers"] == 1


def test_every_pod_of_the_manifest_has_what_a_rank_needs():
    spec = load("kuberay")["spec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        environment = {entry["name"]: entry for entry in container["env"]}
        assert environment["RAY_AUTH_MODE"]["value"] == "token"
        assert "secretKeyRef" in environment["RAY_AUTH_TOKEN"]["valueFrom"], "no token in the file"
        assert container["resources"]["limits"] == container["resources"]["requests"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


@pytest.mark.parametrize("name", RAY_UP)
def test_no_line_with_a_made_up_value_lacks_its_mark(name):
    made_up = re.compile(r"192\.168|ubuntu$|us-|EDIT")
    for line in (FOLDER / f"{name}.yaml").read_text().splitlines():
        if made_up.search(line) and not line.lstrip().startswith(("#", "--")):
            assert "# EDIT" in line or (name in CLOUDS and "ssh_user" in line), line


def test_files_lists_each_with_its_purpose(command):
    outcome = command("cluster", "files", "--json")
    assert outcome.json()["files"]["two-boxes"] == "Two boxes with two RTX 3090 each: four ranks."


def test_new_writes_the_file_and_names_the_lines_to_change(command, tmp_path):
    out = tmp_path / "cluster.yaml"
    outcome = command("cluster", "new", "aws", out, "--json")
    assert outcome.status == 0
    assert out.read_text() == (FOLDER / "aws.yaml").read_text()
    assert outcome.json()["edit"] == [number for number, _ in lines_to_edit("aws")] != []


def test_new_touches_no_file_that_is_there(command, tmp_path):
    out = tmp_path / "cluster.yaml"
    out.write_text("mine")
    outcome = command("cluster", "new", "aws", out, "--json")
    assert (outcome.status, outcome.json()["error"]["code"]) == (2, "E-CLUSTER-FILE")
    assert out.read_text() == "mine"


def test_new_lists_the_names_it_knows(command, tmp_path):
    outcome = command("cluster", "new", "azure", tmp_path / "cluster.yaml", "--json")
    assert outcome.status == 2
    assert "aws, four-boxes, gcp, kuberay, two-boxes" in outcome.json()["error"]["message"]
