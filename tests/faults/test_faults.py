"""Each fault of `tests.faults.table`, on a Ray cluster of several nodes: no row is lost, duplicated or changed."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from tests.faults.soak import BETWEEN, DRIVER, KINDS, RAYLET, schedule
from tests.faults.table import CLIPS, FAULTS, run_with_fault
from tests.faults.world import Difference, write_corpus

HEAD_LOST = "or lost the head of the cluster"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, small_ctc):
    """A corpus, and a run over it without faults."""
    base = tmp_path_factory.mktemp("undisturbed")
    corpus = write_corpus(base / "in", CLIPS)
    outcome = run_with_fault(None, base, corpus, str(base / "run"), small_ctc)
    assert outcome.starts == 1
    return corpus, str(base / "run")


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_no_fault_loses_doubles_or_changes_a_row(name, tmp_path, undisturbed, small_ctc):
    corpus, expected = undisturbed
    outcome = run_with_fault(FAULTS[name], tmp_path, corpus, expected, small_ctc)
    assert outcome.difference == Difference(0, 0, 0)
    assert outcome.starts == (2 if name in ("driver killed with 9", "head lost") else 1)
    if name == "head lost":
        assert HEAD_LOST in (tmp_path / "log.txt").read_text()


def test_the_kills_of_a_soak_follow_from_its_seed_and_include_enough_of_each_kind():
    kinds = schedule(50, random.Random(3))
    assert kinds == schedule(50, random.Random(3)) != schedule(50, random.Random(4))
    counts = Counter(kinds)
    assert counts.total() == 50
    assert set(counts) <= set(KINDS)
    assert (counts[DRIVER] >= 10, counts[BETWEEN] >= 10, counts[RAYLET] >= 5) == (True, True, True)
