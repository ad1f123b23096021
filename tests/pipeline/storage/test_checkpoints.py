"""A machine's local copy of a checkpoint: made once, complete, and equal to what the run was started with."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.errors import InputChangedError, StorageError, UsageError
from pipeline.storage import objects, retry
from pipeline.storage.checkpoints import checkpoint_digest, local_copy, pinned
from tests.support.hub import model_hub


@pytest.fixture
def remote(tmp_path, small_ctc):
    """The URI of a checkpoint, with a file beside it that is not part of it."""
    shutil.copytree(small_ctc, tmp_path / "remote")
    (tmp_path / "remote" / "README.md").write_text("not part of it")
    (tmp_path / "remote" / "processor_config.json").write_text("{}")
    return f"file://{tmp_path}/remote"


def test_a_local_directory_is_its_own_copy(tmp_path, small_ctc):
    assert local_copy(str(small_ctc), "", tmp_path / "copies") == str(small_ctc)
    assert local_copy("bundled", "", tmp_path / "copies") == "bundled"
    assert not (tmp_path / "copies").exists()


def test_concurrent_callers_share_one_copy_that_is_fetched_once(tmp_path, remote, monkeypatch):
    digest = checkpoint_digest(remote)
    fetched = []
    fetch = objects.fetch
    monkeypatch.setattr(objects, "fetch", lambda uri: fetched.append(uri) or fetch(uri))
    with ThreadPoolExecutor(8) as pool:
        copies = list(pool.map(lambda _: local_copy(remote, digest, tmp_path / "copies"), range(8)))
    assert len(set(copies)) == 1
    assert checkpoint_digest(copies[0]) == digest
    assert len(fetched) == len(set(fetched)) > 2
    assert not any("README" in uri for uri in fetched)
    assert any("/processor_config" in uri for uri in fetched)


def test_the_fallback_configuration_of_a_feature_extractor_is_part_of_the_digest(remote, tmp_path):
    before = checkpoint_digest(remote)
    (tmp_path / "remote" / "processor_config.json").write_text('{"do_normalize": false}')
    assert checkpoint_digest(remote) != before


def test_an_incomplete_copy_is_made_again(tmp_path, remote):
    digest = checkpoint_digest(remote)
    (Path(local_copy(remote, digest, tmp_path / "copies")) / "vocab.json").unlink()
    assert checkpoint_digest(local_copy(remote, digest, tmp_path / "copies")) == digest


def test_a_changed_checkpoint_is_refused_and_leaves_no_copy(tmp_path, remote):
    with pytest.raises(InputChangedError, match="not the checkpoint that the run was started with"):
        local_copy(remote, "0" * 64, tmp_path / "copies")
    assert [path.suffix for path in (tmp_path / "copies").iterdir()] == [".lock"]


# On the hub.

NAME = "org/sew-d"


@pytest.fixture
def hub(tmp_path, small_ctc):
    with model_hub(tmp_path / "cache") as models:
        models.commit = models.publish(NAME, small_ctc)
        yield models


def test_a_name_on_the_hub_becomes_a_commit_whose_digest_is_that_of_its_files(hub, tmp_path, small_ctc):
    uri = pinned(NAME)
    assert uri == f"hf://{NAME}@{hub.commit}" == pinned(uri) == pinned(f"hf://{NAME}@main")
    digest = checkpoint_digest(uri)
    assert digest == checkpoint_digest(str(small_ctc))
    # Another program downloads more of the commit.
    folder = Path(local_copy(uri, digest, tmp_path / "copies"))
    (folder / "pytorch_model.bin").write_text("weights that are not used")
    assert checkpoint_digest(uri) == digest


def test_a_machine_downloads_a_commit_once(hub, tmp_path, small_ctc):
    uri, digest = f"hf://{NAME}@{hub.commit}", checkpoint_digest(str(small_ctc))
    with ThreadPoolExecutor(8) as pool:
        copies = set(pool.map(lambda _: local_copy(uri, digest, tmp_path / "copies"), range(8)))
    assert len(copies) == 1
    fetched = [request for request in hub.requests() if request.startswith("GET")]
    assert len(fetched) == len(set(fetched)) == 5
    with pytest.raises(InputChangedError, match="not the checkpoint that the run was started with"):
        local_copy(uri, "0" * 64, tmp_path / "copies")


def test_what_is_wrong_with_a_name_is_one_line_of_its_kind(hub, monkeypatch):
    with pytest.raises(UsageError, match=r"^cannot load the model org/none: there is no directory .* answered 401"):
        pinned("org/none")
    hub.server.failures = 10**6
    with pytest.raises(StorageError, match=r"^cannot load the model org/sew-d: .* answered 503"):
        pinned(NAME)


def test_a_worker_tries_the_hub_again(hub, tmp_path, small_ctc, monkeypatch):
    waits = []
    monkeypatch.setattr(retry, "_sleep", waits.append)
    uri, digest = f"hf://{NAME}@{hub.commit}", checkpoint_digest(str(small_ctc))
    hub.server.failures = 3
    assert checkpoint_digest(local_copy(uri, digest, tmp_path / "copies")) == digest
    assert len(waits) == 3
    with pytest.raises(StorageError, match="401"):
        local_copy(f"hf://org/none@{hub.commit}", digest, tmp_path / "copies")
