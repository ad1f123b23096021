"""How a cluster is shared out: what is given always fits, and what cannot fit is refused with the numbers."""

import math
import re
import time
from collections import Counter

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.util import get_node_ip_address

from pipeline.cluster.object_store import (
    CHUNKS_A_CPU_ACTOR,
    CHUNKS_A_GPU_ACTOR,
    LEAST_STORE_BYTES,
    STORE_SHARE,
    store_share,
)
from pipeline.cluster.ray_start import connect
from pipeline.cluster.resources import HEAD, Machines, Node, Resources, allocate, machines
from pipeline.config import make_config
from pipeline.errors import UsageError
from tests.support import s3

CPUS = st.one_of(st.integers(1, 200), st.floats(0.1, 200)).map(float)


def config(**changes):
    return make_config(inputs=("c",), output="r", model="m", **changes)


def shared(nodes, **changes):
    return allocate(Machines(tuple(Node(*node) for node in nodes)), config(**changes))


def can_be_placed(given_out: Resources, nodes) -> bool:
    """Is there a machine for both tasks, while all of them together hold the actors? By trying each."""

    def actors(cpus, gpus):
        held = 0
        while cpus >= given_out.actor_cpus - 1e-9 and gpus >= given_out.actor_gpus - 1e-9 and held < given_out.actors:
            cpus, gpus, held = cpus - given_out.actor_cpus, gpus - given_out.actor_gpus, held + 1
        return held

    beside = given_out.read_cpus + given_out.sink_cpus
    return any(
        sum(actors(cpus - (beside if j == i else 0), gpus) for j, (cpus, gpus) in enumerate(nodes)) >= given_out.actors
        for i, (cpus_i, _) in enumerate(nodes)
        if cpus_i >= beside
    )


def holds(given_out: Resources, nodes) -> None:
    assert given_out.actors >= 1
    assert given_out.threads >= 1
    assert min(given_out.actor_cpus, given_out.read_cpus, given_out.sink_cpus) > 0
    assert can_be_placed(given_out, nodes)
    if not given_out.actor_gpus:
        assert given_out.read_cpus != given_out.actor_cpus  # or Ray fuses decoding into the actors
    for request in (given_out.actor_cpus, given_out.read_cpus):
        assert math.isclose(request * 1e4, round(request * 1e4), abs_tol=1e-6)  # Ray knows no finer share


@settings(deadline=None)
@given(cpus=CPUS, actors=st.none() | st.integers(1, 60))
def test_what_is_given_on_one_machine_fits(cpus, actors):
    refusal = None
    try:
        found = shared([(cpus, 0.0)], actors=actors)
    except UsageError as error:
        refusal = str(error)
    if refusal is None:
        holds(found, [(cpus, 0.0)])
        assert found.actors == (actors or 1)
        assert found.actor_gpus == 0
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
def test_what_is_given_on_a_cluster_fits_its_machines(nodes, actors, gpus, cpus):
    refusal = None
    try:
        found = shared(nodes, actors=actors, gpus_per_actor=gpus, cpus_per_actor=cpus)
    except UsageError as error:
        refusal = str(error)
    if refusal is None:
        holds(found, nodes)
        assert found.actors == actors or actors is None
        assert found.actor_cpus == cpus or cpus is None
        assert gpus is None or found.actor_gpus == gpus
    else:
        assert re.search(r"but Ray has [\d.e+]+ (CPUs|GPUs)", refusal)
        assert "\n" not in refusal


@settings(deadline=None)
@given(cpus=st.integers(2, 64), count=st.integers(1, 9))
def test_equal_machines_each_hold_an_actor_and_give_it_their_processors(cpus, count):
    found = shared([(cpus, 0)] * count)
    assert (found.actors, found.actor_cpus, found.threads) == (count, cpus - 0.5, cpus)


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
def test_a_machine_without_gpus_is_shared_out(cpus, changes, wanted):
    assert shared([(cpus, 0)], **changes) == wanted


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
def test_gpus_have_an_actor_each(nodes, changes, wanted):
    assert shared(nodes, **changes) == wanted


@pytest.mark.parametrize(
    ("nodes", "changes", "words"),
    [
        ([(2, 0)], {"cpus_per_actor": 2}, "1 actors x 2 CPUs, .* need 2.5 CPUs, but Ray has 2 CPUs: ask for"),
        ([(2, 0)], {"actors": 2, "cpus_per_actor": 1}, "2 actors x 1 CPUs, .* need 2.5 CPUs, but Ray has 2 CPUs"),
        ([(2, 0)], {"cpus_per_actor": 1.75}, "need 2.25 CPUs, but Ray has 2 CPUs"),  # no room for the writer
        ([(4, 0), (4, 0)], {"cpus_per_actor": 5}, "but Ray has 8 CPUs on 2 machines"),
        ([(0.5, 0)], {}, "but Ray has 0.5 CPUs"),
        ([(0, 0)], {}, "no machine with CPUs for tasks: wait for the cluster's workers"),
        ([(8, 1)], {"actors": 2}, "2 actors x 1 GPUs = 2 GPUs, but Ray has 1 GPUs, room for 1"),
        ([(8, 1), (8, 1)], {"gpus_per_actor": 2}, "2 GPUs, but Ray has 2 GPUs on 2 machines, room for 0"),
        ([(8, 0)], {"gpus_per_actor": 1}, "1 GPUs, but Ray has 0 GPUs"),
        ([(8, 4)], {"gpus_per_actor": 1.5}, "above 1 it must be a whole number"),
        ([(8, 0)], {"dtype": "bfloat16"}, "dtype bfloat16 is for GPUs"),
        ([(8, 1)], {"dtype": "float16", "gpus_per_actor": 0}, "dtype float16 is for GPUs"),
        ([(8, 1)], {"dtype": "int8"}, "dtype int8 is for CPUs.*: add --gpus-per-actor 0"),
    ],
)
def test_what_cannot_fit_is_refused_with_the_numbers(nodes, changes, words):
    with pytest.raises(UsageError, match=words):
        shared(nodes, **changes)


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}", "auto", "nonsense"])
def test_no_ray_at_the_address_is_a_usage_error_at_once(address, monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray._private.services.canonicalize_bootstrap_address", nothing_runs)
    address = address.format(port=s3.free_port())
    began = time.monotonic()
    with pytest.raises(UsageError, match=f"^no Ray at {address}: "), connect(address):
        pytest.fail("connected")
    assert time.monotonic() - began < 5


def nothing_runs(address, *_, **__):
    if ":" in address or address == "auto":
        raise ConnectionError("nothing runs here")
    raise ValueError(f"Invalid address format: {address}")


def test_the_machines_are_those_that_are_alive(monkeypatch):
    nodes = [
        {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0, "memory": 1e9}},
        {"Alive": False, "Resources": {"CPU": 64.0}},
        {"Alive": True, "Resources": {"memory": 1e9}},  # a head that does no work
    ]
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    assert machines("auto") == Machines((Node(4.0, 1.0), Node(0.0, 0.0)))


def test_the_autoscalers_machines_are_counted_without_those_that_are_there(monkeypatch, tmp_path):
    kinds = {
        "head": {"resources": {"CPU": 0}, "max_workers": 0},
        "spot": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 3},
        "demand": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 3},
        "small": {"resources": {"CPU": 4}, "max_workers": 2},
    }
    config = {"max_workers": 9, "head_node_type": "head", "available_node_types": kinds}
    (path := tmp_path / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setattr("pipeline.cluster.resources.AUTOSCALING_CONFIG", path)
    head = {"Alive": True, "NodeManagerAddress": get_node_ip_address(), "Resources": {HEAD: 1.0, "CPU": 4.0}}
    workers = [{"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0}}] * 4
    monkeypatch.setattr("ray.nodes", lambda: [head, *workers])
    found = machines("auto")
    assert found.there == (Node(4, 0), *[Node(8, 1)] * 4)
    assert Counter(found.may_come) == {Node(8, 1): 2, Node(4, 0): 2}
    path.write_text(yaml.safe_dump(config | {"max_workers": 5}))
    assert machines("auto").may_come == (Node(8, 1),)
    assert machines("local").may_come == ()
    monkeypatch.setattr("ray.nodes", lambda: [head | {"NodeManagerAddress": "another"}, *workers])
    assert machines("another:6379").may_come == ()


def test_a_cluster_that_grows_gets_a_pool_that_follows_the_work():
    grows = Machines((Node(0, 0),), (Node(8, 1),) * 4)
    assert allocate(grows, config()).actors == 4
    assert allocate(grows, config()).min_actors == 1
    assert allocate(grows, config(actors=3)).min_actors == 3
    assert allocate(grows, config(actors=3, min_actors=2)).min_actors == 2
    with pytest.raises(UsageError, match="5 actors x 1 GPUs = 5 GPUs, but Ray has 4 GPUs on 5 machines, room for 4"):
        allocate(grows, config(actors=5))


@settings(deadline=None)
@given(cpus=st.integers(2, 64), count=st.integers(1, 9), gpus=st.integers(0, 4))
def test_of_equal_machines_chunks_may_take_half_of_the_stores(cpus, count, gpus):
    nodes = [Node(cpus + gpus, gpus, 1e9)] * count
    assert store_share(nodes, allocate(Machines(tuple(nodes)), config()), 1e9) == pytest.approx(STORE_SHARE)


@pytest.mark.parametrize(
    ("nodes", "wanted"),
    [
        ([Node(1, 1, 4e9), Node(1, 1, 4e9), Node(8, 0, 4e9)], 0.5 / 3),  # one reads for all
        ([Node(1, 1, 16e9), Node(8, 0, 2e9), Node(0, 0, 2e9)], 0.5 * 2 / 20),  # and has less to store
        # Two readers beside the actor and six of the other: of 8 chunks these hold 6, in a store that is half as large.
        ([Node(3, 1, 6e9), Node(6, 0, 3e9)], 0.5 * (3 / 6) * 8 / 9),
        ([Node(1, 1), Node(8, 0)], 0.5),  # nothing is known of them
    ],
)
def test_machines_that_read_for_others_are_not_filled(nodes, wanted):
    given_out = allocate(Machines(tuple(nodes)), config())
    assert given_out.read_cpus == 1
    assert store_share(nodes, given_out, 1e9) == pytest.approx(wanted)


def test_where_any_of_the_machines_may_read_the_smallest_is_not_filled():
    given_out = shared([(8, 0), (8, 0)], actors=1, cpus_per_actor=8)
    assert store_share([Node(8, 0, 4e9), Node(8, 0, 2e9)], given_out, 1e9) == pytest.approx(0.5 * 2 / 6)


def test_of_large_stores_no_more_is_taken_than_some_chunks_need():
    cpus, gpus = [Node(4, 0, 1e12)] * 2, [Node(8, 2, 1e12)]
    assert store_share(cpus, shared([(4, 0)] * 2), 4e7) == pytest.approx(2 * CHUNKS_A_CPU_ACTOR * 4e7 / 2e12)
    assert store_share(gpus, shared([(8, 2)]), 4e7) == pytest.approx(2 * CHUNKS_A_GPU_ACTOR * 4e7 / 1e12)
    assert store_share(cpus, shared([(4, 0)] * 2), 1e3) == pytest.approx(LEAST_STORE_BYTES / 2e12)


@pytest.mark.parametrize(("actors", "fewest"), [(2, 3), (None, 1)])
def test_a_pool_whose_fewest_are_more_than_its_most_is_refused(actors, fewest):
    with pytest.raises(UsageError, match="is no range"):
        config(actors=actors, min_actors=fewest)


def test_a_ray_that_is_connected_is_used_and_left_running(monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    for name in ("init", "shutdown"):
        monkeypatch.setattr(f"ray.{name}", lambda *_, **__: pytest.fail("it was not ours"))
    with connect("local"):
        pass
