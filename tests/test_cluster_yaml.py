"""cluster.yaml, checked by Ray's own code: its schema, its bootstrap on a simulated AWS, and its scheduler."""

from __future__ import annotations

import copy
from pathlib import Path

import boto3
import moto
import pytest
import yaml
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.util import get_node_ip_address

import pipeline
from pipeline.cluster.resources import HEAD_RESOURCE, allocate, cluster_nodes

ROOT = Path(__file__).parents[1]


@pytest.fixture
def configuration() -> dict:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture
def prepared(configuration) -> dict:
    config = prepare_config(configuration)
    validate_config(config)
    return config


def test_ray_accepts_the_configuration(prepared):
    assert prepared["head_node_type"] == "head"
    assert set(prepared["available_node_types"]) == {"head", "gpu_spot", "gpu_on_demand"}


def test_ray_refuses_a_misspelt_key(configuration):
    broken = copy.deepcopy(configuration)
    broken["available_node_types"]["gpu_spot"]["max_wrokers"] = 1
    with pytest.raises(Exception, match="max_wrokers"):
        validate_config(prepare_config(broken))


def test_spot_and_on_demand_workers_are_the_same_machine(prepared):
    types = prepared["available_node_types"]
    spot, on_demand = dict(types["gpu_spot"]["node_config"]), types["gpu_on_demand"]["node_config"]
    assert spot.pop("InstanceMarketOptions") == {"MarketType": "spot"}
    assert spot == on_demand
    assert types["gpu_spot"]["resources"] == types["gpu_on_demand"]["resources"]


def test_the_image_has_the_pinned_version_of_ray(prepared):
    [pin] = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("ray==")]
    assert prepared["docker"]["image"] == f"rayproject/ray:{pin.removeprefix('ray==')}-py311-gpu"


def launched(config: dict, demands: list[dict], availability: dict[str, float] | None = None) -> dict[str, int]:
    """The nodes that Ray's autoscaler would start for the demands, by node type, without the head."""
    parsed = AutoscalingConfig(copy.deepcopy(config), skip_content_hash=True)
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=parsed.get_node_type_configs(),
        max_num_nodes=parsed.get_max_num_nodes(),
        resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(d) for d in demands]),
        recoverable_resource_availabilities=availability or {},
    )
    reply = ResourceDemandScheduler(None).schedule(request)
    return {item.instance_type: item.count for item in reply.to_launch if item.instance_type != "head"}


def test_workers_are_spot_instances_where_available_and_on_demand_where_not(prepared):
    three = [{"GPU": 1, "CPU": 1}] * 3
    assert launched(prepared, []) == {}
    assert launched(prepared, three) == {"gpu_spot": 3}
    assert launched(prepared, three, {"gpu_spot": 0.0}) == {"gpu_on_demand": 3}


def test_a_run_may_use_all_potential_nodes(prepared, monkeypatch, tmp_path):
    (path := tmp_path / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(prepared))
    monkeypatch.setattr("pipeline.cluster.resources.AUTOSCALING_CONFIG", path)
    head = {"Alive": True, "NodeManagerAddress": get_node_ip_address(), "Resources": {HEAD_RESOURCE: 1.0}}
    monkeypatch.setattr("ray.nodes", lambda: [head])
    resources = allocate(cluster_nodes("auto"), pipeline.RunConfig(inputs=("in",), output="out", model="model"))
    assert (resources.min_actors, resources.actors) == (1, prepared["max_workers"])
    assert (resources.actor_gpus, resources.read_cpus) == (1, 1)


def test_no_more_nodes_than_the_limit_are_started(prepared):
    # Ray counts the head towards its limit, and this request has none.
    assert sum(launched(prepared, [{"GPU": 1}] * 100).values()) == prepared["max_workers"] + 1
    assert launched(prepared, [{"GPU": 2}]) == launched(prepared, []), "no node type has two GPUs"


@pytest.fixture
def aws(tmp_path, monkeypatch):
    """A simulated AWS, and a home directory for the key that Ray creates."""
    for name, value in {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / ".ssh").mkdir()
    with moto.mock_aws():
        yield boto3.client("ec2", region_name="us-east-1")


def test_ray_starts_the_nodes_on_a_simulated_aws(prepared, aws):
    iam = boto3.client("iam", region_name="us-east-1")
    profile = iam.create_instance_profile(InstanceProfileName="sewd-pipeline")["InstanceProfile"]["Arn"]
    for node_type in prepared["available_node_types"].values():
        node_type["node_config"]["IamInstanceProfile"]["Arn"] = profile
    config = bootstrap_aws(prepared)

    provider = AWSNodeProvider(config["provider"], "sewd")
    for name in ("head", "gpu_spot", "gpu_on_demand"):
        tags = {TAG_RAY_NODE_KIND: "head" if name == "head" else "worker", TAG_RAY_USER_NODE_TYPE: name}
        provider.create_node(config["available_node_types"][name]["node_config"], tags, 1)
    started = [m for r in aws.describe_instances()["Reservations"] for m in r["Instances"]]
    by_type = {next(t["Value"] for t in m["Tags"] if t["Key"] == TAG_RAY_USER_NODE_TYPE): m for m in started}
    assert {name: m["InstanceType"] for name, m in by_type.items()} == {
        "head": "m7i.xlarge",
        "gpu_spot": "g6.2xlarge",
        "gpu_on_demand": "g6.2xlarge",
    }
    assert {name for name, m in by_type.items() if m.get("InstanceLifecycle") == "spot"} == {"gpu_spot"}
    assert all(m["IamInstanceProfile"]["Arn"] == profile for m in started)
    assert all(m["Placement"]["AvailabilityZone"].startswith("us-east-1") for m in started)
