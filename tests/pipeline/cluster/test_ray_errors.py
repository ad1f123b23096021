"""The error of this project that a stage raised is what the caller sees, without what Ray put around it."""

from __future__ import annotations

import pytest
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError, RayTaskError

from pipeline.cluster.ray_errors import project_errors, unwrap_project_error
from pipeline.errors import LeaseLostError, RunFailedError, StorageError, UsageError


@pytest.mark.parametrize("error_type", [RunFailedError, LeaseLostError, StorageError, UsageError])
def test_a_project_error_is_unwrapped_with_its_message(error_type):
    raised = RayTaskError("read_parts", "a long traceback", error_type("part ab: why"))
    error = unwrap_project_error(raised.as_instanceof_cause())
    assert type(error) is error_type
    assert str(error) == "part ab: why"


def test_a_bug_is_not_a_project_error():
    raised = RayTaskError("read_parts", "a long traceback", KeyError("a bug"))
    assert unwrap_project_error(raised.as_instanceof_cause()) is None


def test_a_project_error_is_raised_in_place_of_rays_and_a_bug_as_it_is():
    wrapped = RayTaskError("read_parts", "a long traceback", StorageError("why")).as_instanceof_cause()
    with pytest.raises(StorageError, match=r"^why$") as raised, project_errors():
        raise wrapped
    assert raised.value.__cause__ is wrapped
    bug = RayTaskError("read_parts", "a long traceback", KeyError("a bug"))
    with pytest.raises(RayTaskError) as raised, project_errors():
        raise bug
    assert raised.value is bug


def test_a_dead_actor_is_named_with_rays_reason_in_one_line_without_ids():
    context = ActorDiedErrorContext(
        error_message="The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR",
        class_name="Recognizer",
        actor_id=b"a" * 16,
        pid=7,
        node_ip_address="127.0.0.1",
    )
    error = unwrap_project_error(ActorDiedError(context))
    assert isinstance(error, RunFailedError)
    assert str(error) == (
        "workers died at every try: The actor died unexpectedly before finishing this task. "
        "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR"
    )
