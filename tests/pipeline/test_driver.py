"""What a user is told of an error that a stage raised, out of the wrappers that Ray put around it."""

from __future__ import annotations

import pytest
from ray.exceptions import RayTaskError

from pipeline.driver import _ours
from pipeline.errors import LeaseLostError, RunFailedError, StorageError, UsageError


@pytest.mark.parametrize("kind", [RunFailedError, LeaseLostError, StorageError, UsageError])
def test_an_error_of_ours_is_raised_as_it_was(kind):
    raised = RayTaskError("read_parts", "a long traceback", kind("part ab: why"))
    found = _ours(raised.as_instanceof_cause())
    assert type(found) is kind
    assert str(found) == "part ab: why"


def test_a_bug_is_none_of_ours():
    assert _ours(RayTaskError("read_parts", "a long traceback", KeyError("a bug")).as_instanceof_cause()) is None
