"""How a cluster is divided: what is allocated always fits, and what cannot fit is refused with the numbers."""

import dataclasses
import math
import re
from collections import Counter
from pathlib import Path

import pytest
import ray
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.data import DataContext
from ray.util import get_node_ip_address

from pipeline.cluster.object_store import (
    CHUNKS_PER_CPU_ACTOR,
    CHUNKS_PER_GPU_ACTOR,
    MIN_STORE_BYTES,
    RELEASE_INTERVAL_S,
    STORE_SHARE,
    data_context,
    store_share,
)
from pipeline.cluster.ray_start import connect
from pipeline.cluster.resources import (
    DEFAULT_MAX_WORKERS,
    HEAD_RESOURCE,
    ClusterNodes,
    Node,
    Resources,
    allocate,
    cluster_nodes,
    nodes_of,
)
from pipeline.config import make_config
from pipeline.errors import UsageError
from tests.support import s3

CPUS = st.one_of(st.integers(1, 200), st.floats(0.1, 200)).map(float)


def config(**changes):
    return make_config(inputs=("c",), output="r", model="m", **changes)


def allocated(nodes, **changes):
    return allocate(ClusterNodes(tuple(Node(*node) for node in nodes)), config(**changes))


def can_be_placed(resources: Resources, nodes) -> bool:
    """Whether some node has room for both tasks while all nodes together hold the actors; tries each node."""

    def actors(cpus, gpus):
        count = 0
        while cpus >= resources.actor_cpus - 1e-9 and gpus >= resources.actor_gpus - 1e-9 and count < resources.actors:
            cpus, gpus, count = cpus - resources.actor_cpus, gpus - resources.actor_gpus, count + 1
        return count

    tasks = resources.read_cpus + resources.write_cpus
    return any(
        sum(actors(cpus - (tasks if j == i else 0), gpus) for j, (cpus, gpus) in enumerate(nodes)) >= resources.actors
        for i, (cpus_i, _) in enumerate(nodes)
        if cpus_i >= tasks
    )


def check_allocation(resources: Resources, nodes) -> None:
    assert resources.actors >= 1
    assert resources.threads >= 1
    assert min(resources.actor_cpus, resources.read_cpus, resources.write_cpus) > 0
    assert can_be_placed(resources, nodes)
    if not resources.actor_gpus:
        assert resources.read_cpus != resources.actor_cpus  # or Ray fuses decoding into the actors
    for request in (resources.actor_cpus, resources.read_cpus):
        assert math.isclose(request * 1e4, round(request * 1e4), abs_tol=1e-6)  # Ray counts in ten-thousandths


@settings(deadline=None)
@given(cpus=CPUS, actors=st.none() | st.integers(1, 60))
def test_the_allocation_on_one_node_fits(cpus, actors):
    refusal = None
    try:
        resources = allocated([(cpus, 0.0)], actors=actors)
    except UsageError as error:
        refusal = str(error)
    if refusal is None:
        check_allocation(resources, [(cpus, 0.0)])
        assert resources.actors == (actors or 1)
        assert resources.actor_gpus == 0
    else:
        assert f"{cpus:g} CPUs" in refusal
        assert cpus < 0.5 + (actors or 1) * 1e-4


@settings(deadline=None)
@given(
    nodes=st.lists(st.tuples(CPUS, st.integers(0, 8).map(float)), min_size=1, max_size=6),
    actors=st.none() | st.integers(1, 40),
    gpus=st.none() | st.sampled_from([0, 0.1, 0.25, 0.3, 1, 2]),
    cpus=st.none() | st.integers(1, 160).map(lambda n: n / 8),
)
def test_the_allocation_on_a_cluster_fits_its_nodes(nodes, actors, gpus, cpus):
    refusal = None
    try:
        resources = allocated(nodes, actors=actors, gpus_per_actor=gpus, cpus_per_actor=cpus)
    except UsageError as error:
        refusal = str(error)
    if refusal is None:
        check_allocation(resources, nodes)
        assert resources.actors == actors or actors is None
        assert resources.actor_cpus == cpus or cpus is None
        assert gpus is None or resources.actor_gpus == gpus
    else:
        assert re.search(r"but Ray has [\d.e+]+ (CPUs|GPUs)", refusal)
        assert "\n" not in refusal


@settings(deadline=None)
@given(cpus=st.integers(2, 64), count=st.integers(1, 9))
def test_equal_nodes_each_hold_an_actor_with_their_cpus(cpus, count):
    resources = allocated([(cpus, 0)] * count)
    assert (resources.actors, resources.actor_cpus, resources.threads) == (count, cpus - 0.5, cpus)


@pytest.mark.parametrize(
    ("cpus", "changes", "wanted"),
    [
        (2, {}, Resources(1, 1, 1.5, 0, 0.25, 0.25, 2, 2)),
        (2, {"actors": 2}, Resources(2, 2, 0.75, 0, 0.25, 0.25, 4, 1)),
        (1, {}, Resources(1, 1, 0.5, 0, 0.25, 0.25, 2, 1)),
        (8, {"actors": 3}, Resources(3, 3, 2.5, 0, 0.25, 0.25, 6, 2)),
        (8, {"cpus_per_actor": 0.25}, Resources(1, 1, 0.25, 0, 0.125, 0.25, 2, 8)),
        (8, {"threads": 5}, Resources(1, 1, 7.5, 0, 0.25, 0.25, 2, 5)),
    ],
)
def test_the_allocation_of_a_node_without_gpus(cpus, changes, wanted):
    assert allocated([(cpus, 0)], **changes) == wanted


@pytest.mark.parametrize(
    ("nodes", "changes", "wanted"),
    [
        ([(16, 1)], {}, Resources(1, 1, 1, 1, 1, 0.25, 4, 16)),
        ([(16, 4)], {}, Resources(4, 4, 1, 1, 1, 0.25, 16, 4)),
        ([(16, 1)], {"gpus_per_actor": 0.25}, Resources(4, 4, 1, 0.25, 1, 0.25, 16, 4)),
        ([(16, 1)], {"gpus_per_actor": 0.1}, Resources(10, 10, 1, 0.1, 0.25, 0.25, 40, 1)),
        ([(2, 1)], {}, Resources(1, 1, 1, 1, 0.25, 0.25, 4, 2)),
        ([(4, 1), (16, 0)], {}, Resources(1, 1, 1, 1, 1, 0.25, 4, 4)),
        ([(0, 0), (8, 2), (8, 2)], {}, Resources(4, 4, 1, 1, 1, 0.25, 16, 4)),
        ([(16, 1)], {"gpus_per_actor": 0}, Resources(1, 1, 15.5, 0, 0.25, 0.25, 2, 16)),
    ],
)
def test_each_gpu_has_an_actor(nodes, changes, wanted):
    assert allocated(nodes, **changes) == wanted


@pytest.mark.parametrize(
    ("nodes", "changes", "message"),
    [
        ([(2, 0)], {"cpus_per_actor": 2}, "1 actors x 2 CPUs, .* need 2.5 CPUs, but Ray has 2 CPUs: ask for"),
        ([(2, 0)], {"actors": 2, "cpus_per_actor": 1}, "2 actors x 1 CPUs, .* need 2.5 CPUs, but Ray has 2 CPUs"),
        ([(2, 0)], {"cpus_per_actor": 1.75}, "need 2.25 CPUs, but Ray has 2 CPUs"),  # no room for the writer
        ([(4, 0), (4, 0)], {"cpus_per_actor": 5}, "but Ray has 8 CPUs on 2 nodes"),
        ([(0.5, 0)], {}, "but Ray has 0.5 CPUs"),
        ([(0, 0)], {}, "no nodes with CPUs for tasks: wait for the cluster's workers"),
        ([(8, 1)], {"actors": 2}, "2 actors x 1 GPUs = 2 GPUs, but Ray has 1 GPUs, room for 1"),
        ([(8, 1), (8, 1)], {"gpus_per_actor": 2}, "2 GPUs, but Ray has 2 GPUs on 2 nodes, room for 0"),
        ([(8, 0)], {"gpus_per_actor": 1}, "1 GPUs, but Ray has 0 GPUs"),
        ([(8, 4)], {"gpus_per_actor": 1.5}, "above 1 it must be a whole number"),
        ([(8, 0)], {"dtype": "bfloat16"}, "dtype bfloat16 is for GPUs"),
        ([(8, 1)], {"dtype": "float16", "gpus_per_actor": 0}, "dtype float16 is for GPUs"),
        ([(8, 1)], {"dtype": "int8"}, "dtype int8 is for CPUs.*: add --gpus-per-actor 0"),
    ],
)
def test_a_request_that_cannot_fit_is_refused_with_the_numbers(nodes, changes, message):
    with pytest.raises(UsageError, match=message):
        allocated(nodes, **changes)


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}"])
def test_an_address_where_nothing_listens_is_refused_before_ray_waits_for_it(address, monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("Ray was asked, and would wait for a minute"))
    address = address.format(port=s3.free_port())
    with pytest.raises(UsageError, match=f"^no Ray at {address}: "), connect(address):
        pytest.fail("connected")


@pytest.mark.parametrize("address", ["auto", "nonsense"])
def test_an_address_without_a_ray_is_a_usage_error(address, monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray._private.services.canonicalize_bootstrap_address", no_ray)
    with pytest.raises(UsageError, match=f"^no Ray at {address}: "), connect(address):
        pytest.fail("connected")


def no_ray(address, *_, **__):
    if address == "auto":
        raise ConnectionError("no Ray runs here")
    raise ValueError(f"Invalid address format: {address}")


def test_the_current_nodes_are_those_that_are_alive(monkeypatch):
    nodes = [
        {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0, "memory": 1e9}},
        {"Alive": False, "Resources": {"CPU": 64.0}},
        {"Alive": True, "Resources": {"memory": 1e9}},  # a head that runs no tasks
    ]
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    assert cluster_nodes("auto") == ClusterNodes((Node(4.0, 1.0), Node(0.0, 0.0)))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("max_workers: 4\navailable_node_types: {head: {}, w: {resources: {CPU: 16}}}", 4),
        ("available_node_types: {head: {}, w: {resources: {CPU: 16}}}", 2),
        ("max_workers: 4\navailable_node_types: {w: {resources: {CPU: 16}, max_workers: 3}}", 3),
        ("available_node_types: {w: {resources: {CPU: 16}, max_workers: 9}, unused: {max_workers: 0}}", 2),
    ],
    ids=["of-the-cluster", "of-ray", "of-the-type", "at-most-two"],
)
def test_what_a_cluster_leaves_out_has_the_defaults_of_ray(tmp_path, text, number):
    path = tmp_path / "cluster.yaml"
    path.write_text(f"head_node_type: head\n{text}\n")
    assert nodes_of(path) == (Node(16.0, 0.0),) * number


@pytest.mark.parametrize("provider", ["aws", "gcp", "azure"])
def test_the_default_of_workers_is_that_of_ray(provider):
    defaults = Path(ray.__file__).parent / "autoscaler" / provider / "defaults.yaml"
    assert yaml.safe_load(defaults.read_text())["max_workers"] == DEFAULT_MAX_WORKERS


@pytest.mark.parametrize(
    ("types", "message"),
    [
        ("{head: {}, w: {node_config: {InstanceType: m5.4xlarge}}}", "node type w has no resources: add `resources:"),
        ("{w: {resources: {}}}", "node type w has no resources"),
        ("{head: {resources: {CPU: 4}}}", "cluster.yaml allows no workers"),
        ("{w: {resources: {CPU: 4}, max_workers: 0}}", "cluster.yaml allows no workers"),
        ("{w: {resources: {GPU: 4}}}", "cluster.yaml allows no workers with CPUs"),
        ("{w: 4}", "cluster.yaml is no configuration"),
    ],
    ids=["no-resources", "empty-resources", "head-only", "no-workers", "no-cpus", "no-type"],
)
def test_a_cluster_that_says_too_little_is_one_line(tmp_path, types, message):
    path = tmp_path / "cluster.yaml"
    path.write_text(f"head_node_type: head\nmax_workers: 4\navailable_node_types: {types}\n")
    with pytest.raises(UsageError, match=message) as refused:
        nodes_of(path)
    assert "\n" not in str(refused.value)


def test_the_potential_nodes_are_those_of_the_autoscaler_that_do_not_run_yet(monkeypatch, tmp_path):
    node_types = {
        "head": {"resources": {"CPU": 0}, "max_workers": 0},
        "spot": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 3},
        "demand": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 3},
        "small": {"resources": {"CPU": 4}, "max_workers": 2},
    }
    config = {"max_workers": 9, "head_node_type": "head", "available_node_types": node_types}
    (path := tmp_path / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setattr("pipeline.cluster.resources.AUTOSCALING_CONFIG", path)
    head = {"Alive": True, "NodeManagerAddress": get_node_ip_address(), "Resources": {HEAD_RESOURCE: 1.0, "CPU": 4.0}}
    workers = [{"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0}}] * 4
    monkeypatch.setattr("ray.nodes", lambda: [head, *workers])
    cluster = cluster_nodes("auto")
    assert cluster.current == (Node(4, 0), *[Node(8, 1)] * 4)
    assert Counter(cluster.potential) == {Node(8, 1): 2, Node(4, 0): 2}
    path.write_text(yaml.safe_dump(config | {"max_workers": 5}))
    assert cluster_nodes("auto").potential == (Node(8, 1),)
    assert cluster_nodes("local").potential == ()
    monkeypatch.setattr("ray.nodes", lambda: [head | {"NodeManagerAddress": "another"}, *workers])
    assert cluster_nodes("another:6379").potential == ()


def test_a_cluster_that_can_grow_gets_a_pool_that_can_grow():
    cluster = ClusterNodes((Node(0, 0),), (Node(8, 1),) * 4)
    assert allocate(cluster, config()).actors == 4
    assert allocate(cluster, config()).min_actors == 1
    assert allocate(cluster, config(actors=3)).min_actors == 3
    assert allocate(cluster, config(actors=3, min_actors=2)).min_actors == 2
    with pytest.raises(UsageError, match="5 actors x 1 GPUs = 5 GPUs, but Ray has 4 GPUs on 5 nodes, room for 4"):
        allocate(cluster, config(actors=5))


@settings(deadline=None)
@given(cpus=st.integers(2, 64), count=st.integers(1, 9), gpus=st.integers(0, 4))
def test_chunks_may_take_half_of_the_stores_of_equal_nodes(cpus, count, gpus):
    nodes = [Node(cpus + gpus, gpus, 1e9)] * count
    assert store_share(nodes, allocate(ClusterNodes(tuple(nodes)), config()), 1e9) == pytest.approx(STORE_SHARE)


@pytest.mark.parametrize(
    ("nodes", "wanted"),
    [
        ([Node(1, 1, 4e9), Node(1, 1, 4e9), Node(8, 0, 4e9)], 0.5 / 3),  # one node reads for all
        ([Node(1, 1, 16e9), Node(8, 0, 2e9), Node(0, 0, 2e9)], 0.5 * 2 / 20),  # one reads for all, with a smaller store
        # Two readers beside the actor and six on the other node: it holds 6 of 8 chunks, in a store half as large.
        ([Node(3, 1, 6e9), Node(6, 0, 3e9)], 0.5 * (3 / 6) * 8 / 9),
        ([Node(1, 1), Node(8, 0)], 0.5),  # their stores are unknown
    ],
)
def test_the_stores_of_nodes_that_read_for_others_do_not_overflow(nodes, wanted):
    resources = allocate(ClusterNodes(tuple(nodes)), config())
    assert resources.read_cpus == 1
    assert store_share(nodes, resources, 1e9) == pytest.approx(wanted)


def test_the_smallest_store_does_not_overflow_where_any_node_may_read():
    resources = allocated([(8, 0), (8, 0)], actors=1, cpus_per_actor=8)
    assert store_share([Node(8, 0, 4e9), Node(8, 0, 2e9)], resources, 1e9) == pytest.approx(0.5 * 2 / 6)


def test_the_share_of_a_cluster_of_only_a_head_is_the_largest_one():
    cluster = ClusterNodes((Node(0, 0, 3e8),), (Node(8, 1),) * 4)
    assert store_share(cluster.current, allocate(cluster, config()), 1e9) == STORE_SHARE


def test_chunks_take_no_more_of_large_stores_than_they_need():
    cpus, gpus = [Node(4, 0, 1e12)] * 2, [Node(8, 2, 1e12)]
    assert store_share(cpus, allocated([(4, 0)] * 2), 4e7) == pytest.approx(2 * CHUNKS_PER_CPU_ACTOR * 4e7 / 2e12)
    assert store_share(gpus, allocated([(8, 2)]), 4e7) == pytest.approx(2 * CHUNKS_PER_GPU_ACTOR * 4e7 / 1e12)
    assert store_share(cpus, allocated([(4, 0)] * 2), 1e3) == pytest.approx(MIN_STORE_BYTES / 2e12)


def test_ray_lets_no_chunk_in_above_the_limit_while_an_actor_takes_long():
    """Ray's default is one more every ten seconds, until the corpus fills the store and then the disk."""
    cluster = ClusterNodes((Node(2, 0, 1e9),), ())
    context = data_context(cluster, allocate(cluster, config()), 4e7)
    assert context.output_backpressure_guard_release_interval_s == RELEASE_INTERVAL_S
    assert "output_backpressure_guard_release_interval_s" in {field.name for field in dataclasses.fields(DataContext)}


@pytest.mark.parametrize(("actors", "min_actors"), [(2, 3), (None, 1)])
def test_a_pool_with_a_minimum_above_its_maximum_is_refused(actors, min_actors):
    with pytest.raises(UsageError, match="is not a range"):
        config(actors=actors, min_actors=min_actors)


def test_a_connected_ray_is_used_and_left_running(monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    for name in ("init", "shutdown"):
        monkeypatch.setattr(f"ray.{name}", lambda *_, **__: pytest.fail("this Ray belongs to the caller"))
    with connect("local"):
        pass


def test_a_beam_search_has_the_writers_to_keep_up():
    plain, beam = allocated([(16, 0)]), allocated([(16, 0)], lm="lm.arpa")
    assert (plain.writers, beam.writers, beam.write_cpus) == (2, 16, 0.25)
    plain, beam = allocated([(32, 2)]), allocated([(32, 2)], lm="lm.arpa")
    assert (plain.writers, plain.write_cpus) == (8, 0.25)
    assert (beam.writers, beam.write_cpus) == (29, 1.0)
    assert beam.actor_cpus == plain.actor_cpus


@settings(deadline=None)
@given(st.lists(st.tuples(CPUS, st.integers(0, 8).map(float)), min_size=1, max_size=6))
def test_the_allocation_of_a_beam_search_fits(nodes):
    try:
        resources = allocated(nodes, beam=8)
    except UsageError:
        with pytest.raises(UsageError):
            allocated(nodes)
        return
    check_allocation(resources, nodes)
