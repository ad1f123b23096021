"""A machine's copy of a checkpoint: made once, whole, and of what the run was started with."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.errors import InputChangedError
from pipeline.storage import objects
from pipeline.storage.checkpoints import checkpoint_digest, local_copy


@pytest.fixture
def remote(tmp_path, small_ctc):
    """A checkpoint that is named by a URI, with what does not belong to it."""
    shutil.copytree(small_ctc, tmp_path / "remote")
    (tmp_path / "remote" / "README.md").write_text("not of it")
    (tmp_path / "remote" / "processor_config.json").write_text("{}")
    return f"file://{tmp_path}/remote"


def test_a_directory_is_itself(tmp_path, small_ctc):
    assert local_copy(str(small_ctc), "", tmp_path / "copies") == str(small_ctc)
    assert local_copy("bundled", "", tmp_path / "copies") == "bundled"
    assert not (tmp_path / "copies").exists()


def test_all_who_ask_share_one_copy_that_is_fetched_once(tmp_path, remote, monkeypatch):
    digest = checkpoint_digest(remote)
    fetched = []
    fetch = objects.fetch
    monkeypatch.setattr(objects, "fetch", lambda uri: fetched.append(uri) or fetch(uri))
    with ThreadPoolExecutor(8) as pool:
        places = list(pool.map(lambda _: local_copy(remote, digest, tmp_path / "copies"), range(8)))
    assert len(set(places)) == 1
    assert checkpoint_digest(places[0]) == digest
    assert len(fetched) == len(set(fetched)) > 2
    assert not any("README" in uri for uri in fetched)
    assert any("/processor_config" in uri for uri in fetched)


def test_what_a_feature_extractor_falls_back_to_is_of_the_digest(remote, tmp_path):
    before = checkpoint_digest(remote)
    (tmp_path / "remote" / "processor_config.json").write_text('{"do_normalize": false}')
    assert checkpoint_digest(remote) != before


def test_a_copy_that_lost_a_file_is_made_again(tmp_path, remote):
    digest = checkpoint_digest(remote)
    (Path(local_copy(remote, digest, tmp_path / "copies")) / "vocab.json").unlink()
    assert checkpoint_digest(local_copy(remote, digest, tmp_path / "copies")) == digest


def test_a_checkpoint_that_changed_is_refused_and_leaves_nothing(tmp_path, remote):
    with pytest.raises(InputChangedError, match="not the checkpoint that the run was started with"):
        local_copy(remote, "0" * 64, tmp_path / "copies")
    assert [path.suffix for path in (tmp_path / "copies").iterdir()] == [".lock"]
