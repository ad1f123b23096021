"""Predictions from a trial: what decides the time, for a machine and for a cluster; and a trial on Ray."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.cluster.resources import ClusterNodes, Node, allocate
from pipeline.config import make_config
from pipeline.errors import UsageError
from pipeline.prediction import predict as module
from pipeline.prediction.predict import Machines, predict
from pipeline.prediction.recordings import Recordings, Work
from pipeline.prediction.trial import Trial, run_trial
from pipeline.stages.models import load_model_info
from pipeline.storage.checkpoints import checkpoint_digest

HOUR = 3600.0
THIS_MACHINE = Machines()
CPUS = """
head_node_type: head
max_workers: 5
available_node_types:
  head: {resources: {CPU: 0}, max_workers: 0}
  workers: {resources: {CPU: 2}, max_workers: 5}
"""


def trial_of(lengths, cpus: float = 2.0) -> Trial:
    """A trial on two CPUs: 50 times real time, with two threads, and ten seconds to start and end."""
    nodes = ClusterNodes((Node(2.0, 0.0, 2.0**31),))
    wanted = allocate(nodes, make_config(inputs=(".",), output="."))
    seconds = dict.fromkeys(lengths, 0.02)
    return Trial(10.0, 2.0, seconds, cpus, wanted.threads, 2**30, "packed", wanted, nodes)


@pytest.fixture
def predicted(monkeypatch):
    def trial(config, models, digests, lengths):
        prediction.tried = config
        return trial_of(lengths)

    monkeypatch.setattr(module, "run_trial", trial)
    monkeypatch.setattr(module, "local_gpus", lambda: 0)
    config = make_config(inputs=(".",), output=".")
    models = load_model_info(config)

    def prediction(audio_s=HOUR, read_s=0.0, parts=10, machines=THIS_MACHINE, **changes):
        recordings = Recordings(audio_s=audio_s, work=Work(read_s, read_s, {3: (audio_s, audio_s / 8)}))
        return predict(replace(config, **changes), models, machines, recordings, parts, prepare_s=3.0)

    return prediction


def test_without_decoding_the_model_decides(predicted):
    one = predicted()
    assert one.model_s == pytest.approx(72.0)
    assert one.run_s == pytest.approx(82.0)
    assert one.time_s == pytest.approx(85.0)
    assert one.actor_hours == pytest.approx(82 / HOUR)
    assert (one.recognizers, one.threads, one.cost, one.nodes) == (1, 2, None, 1)
    assert one.speeds == {"8": 50.0}


def test_decoding_shares_the_cpus_with_the_model_and_the_first_chunk_comes_before_it(predicted):
    one = predicted(read_s=40.0)
    # A tenth of 40 s is read first, of which two seconds pass while the recogniser loads; the rest takes half the time
    # of its CPU seconds, beside the two threads of the model.
    assert one.run_s == pytest.approx(10 + (4 - 2) + 72 + 36 / 2)
    assert predicted(read_s=40.0, parts=1).run_s >= one.run_s


def test_more_audio_takes_longer_and_costs_more(predicted):
    times = [predicted(audio_s=hours * HOUR, machines=Machines(cost_per_hour=2.0)) for hours in (1, 2, 10)]
    assert [one.time_s for one in times] == sorted(one.time_s for one in times)
    assert times[0].cost == pytest.approx(2.0 * times[0].time_s / HOUR)


def test_a_cluster_divides_the_work_among_its_recognisers(predicted, tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text(CPUS)
    five = predicted(machines=Machines(cluster=path))
    assert (five.recognizers, five.nodes) == (5, 5)
    assert five.run_s == pytest.approx(10 + 72 / 5)
    # Three chunks cannot be divided among five.
    assert predicted(parts=1, machines=Machines(cluster=path)).run_s == pytest.approx(10 + 72 / 3)
    fast = predicted(machines=Machines(cluster=path, speed=500.0))
    assert fast.model_s == pytest.approx(HOUR / 500)


def test_gpus_that_this_machine_lacks_need_a_speed(predicted, tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text(CPUS.replace("{CPU: 2}", "{CPU: 8, GPU: 1}"))
    with pytest.raises(UsageError, match="--speed"):
        predicted(machines=Machines(cluster=path))
    assert predicted(machines=Machines(cluster=path, speed=1000.0)).model_s == pytest.approx(3.6)


def test_cpus_are_not_predicted_at_the_speed_of_the_gpu_of_this_machine(predicted, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "local_gpus", lambda: 1)
    path = tmp_path / "cluster.yaml"
    path.write_text(CPUS)
    with pytest.raises(UsageError, match=r"--gpus-per-actor 0 .* --speed"):
        predicted(machines=Machines(cluster=path))
    assert predicted(machines=Machines(cluster=path), gpus_per_actor=0.0).model_s == pytest.approx(72.0)
    assert predicted.tried.gpus_per_actor == 0
    assert predicted(machines=Machines(cluster=path, speed=10.0), dtype="int8").model_s == pytest.approx(360.0)
    assert (predicted.tried.gpus_per_actor, predicted.tried.dtype) == (1, "float32")


def test_options_of_machines_are_those_of_the_cluster_and_not_of_the_trial(predicted, tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text(CPUS.replace("{CPU: 2}", "{CPU: 64, GPU: 4}"))
    options = {"actors": 20, "cpus_per_actor": 12.0, "gpus_per_actor": 1.0, "threads": 9, "dtype": "bfloat16"}
    found = predicted(machines=Machines(cluster=path, speed=100.0), **options)
    assert (found.recognizers, found.threads) == (20, 9)
    tried = predicted.tried
    assert (tried.actors, tried.cpus_per_actor, tried.gpus_per_actor, tried.threads) == (None, None, 0, None)
    assert tried.dtype == "float32"  # which this machine can compute
    path.write_text(CPUS)
    predicted(machines=Machines(cluster=path), dtype="int8", threads=1)
    assert (predicted.tried.dtype, predicted.tried.threads) == ("int8", None)
    predicted(dtype="int8", threads=1)
    assert (predicted.tried.dtype, predicted.tried.threads) == ("int8", 1)


@pytest.mark.parametrize("text", ["", "[1]", "max_workers: 2", "a: {"], ids=["empty", "list", "no-types", "no-yaml"])
def test_what_is_no_cluster_is_bad_usage(predicted, tmp_path, text):
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match="no configuration of a Ray cluster"):
        predicted(machines=Machines(cluster=path))
    with pytest.raises(UsageError, match="no configuration"):
        predicted(machines=Machines(cluster=tmp_path / "absent.yaml"))


@pytest.mark.usefixtures("local_ray")
def test_a_trial_times_each_length_in_an_actor(small_ctc):
    config = make_config(inputs=(".",), output=".", model=str(small_ctc))
    trial = run_trial(config, load_model_info(config), (checkpoint_digest(str(small_ctc)),), [0.5, 2.0])
    assert set(trial.seconds) == {0.5, 2.0}
    assert all(0 < seconds < 1 for seconds in trial.seconds.values())
    assert trial.start_s > 0
    assert trial.actor_bytes > 2**27
    assert 0 < trial.cpus <= 3.5
    assert (trial.resources.actors, trial.nodes.current[0].cpus) == (1, 3.0)
