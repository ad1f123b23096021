"""Checkpoints by their names on the hub: a server of our own on loopback, and huggingface_hub as users have it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, file_download

from sewd_model import (
    CheckpointError,
    CTCTokenizer,
    FeatureExtractor,
    Processor,
    SEWDConfig,
    SEWDForCTC,
    SEWDForSequenceClassification,
    SEWDModel,
)
from sewd_model.files import located, shown
from sewd_model.hub import HubName, hub_name
from tests.support.hub import SIGNATURE, model_hub
from tests.support.s3 import web_server

BUNDLED = Path(located("bundled"))  # with both heads
NAME = "org/sew-d"
TOKEN = "hf_CanaryCanaryCanary"  # as secret as a real one
CLASSES = (SEWDConfig, SEWDModel, SEWDForCTC, SEWDForSequenceClassification, FeatureExtractor, CTCTokenizer, Processor)


@pytest.fixture
def hub(tmp_path, monkeypatch, small_ctc):
    """A hub with a model as `org/sew-d`, and an empty cache; the working directory is empty."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with model_hub(tmp_path / "cache") as models:
        models.commit = models.publish(NAME, small_ctc)
        yield models


@pytest.fixture(scope="module")
def other(tmp_path_factory, small_ctc):
    """The same model with other weights."""
    folder = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(small_ctc, folder)
    model = SEWDForCTC.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.bias.add_(1.0)
    model.save_pretrained(folder)
    return folder


def bias(location, **options):
    return SEWDForCTC.from_pretrained(location, **options).lm_head.bias[0].item()


def refusal(location=NAME, kind=CheckpointError, load=SEWDForCTC, **options) -> str:
    """The message with which a load is refused, which is one line."""
    with pytest.raises(kind) as error:
        load.from_pretrained(location, **options)
    assert "\n" not in str(error.value)
    assert "hf_" not in str(error.value)
    return str(error.value)


# Names.


@pytest.mark.parametrize(
    ("text", "repo", "revision"),
    [
        ("org/name", "org/name", None),
        ("org/name@main", "org/name", None),
        ("org/sew-d.tiny_2@v1.0", "org/sew-d.tiny_2", "v1.0"),
        ("org/name@refs/pr/1", "org/name", "refs/pr/1"),
        ("hf://org/name", "org/name", None),
        ("org/name@feature%2Fx", "org/name", "feature/x"),
        ("hf://models/org/name@feature%2Fx", "org/name", "feature/x"),
        ("hf://org/name@refs%2Fpr%2F1", "org/name", "refs/pr/1"),
    ],
)
def test_names_of_the_hub(text, repo, revision):
    name = hub_name(text)
    assert (name.repo, name.revision) == (repo, revision)
    again = hub_name(name.uri)
    assert (again.repo, again.revision, again.uri) == (repo, revision, name.uri)


@pytest.mark.parametrize(
    "text",
    [
        *("bundled", "name", "./org/name", "/org/name", "../name", "~/name", "a/b/c", "org/name/", "a b/c", "", "org/"),
        *(
            "models/name",
            "hf://datasets/org/name",
            "hf://org",
            "hf://org/name/file",
            "hf://org/name@main/sub",
            "hf://org/name@refs/pr/1/sub",
            "org/name@main/sub",
            "s3://org/name",
            "file:///org/name",
        ),
        *(Path("org/name"), BUNDLED),
    ],
)
def test_paths_and_uris_are_no_names_of_the_hub(text):
    assert hub_name(text) is None


def test_a_directory_of_the_name_wins(hub, other):
    shutil.copytree(other, NAME)
    assert bias(NAME) == bias(other) != bias(f"hf://{NAME}")
    shutil.rmtree(NAME)
    Path(NAME).write_text("a file")
    assert "is not a directory" in refusal()


# Downloads.


@pytest.mark.parametrize("kind", CLASSES)
def test_each_class_loads_by_name_what_it_loads_from_the_directory(hub, kind):
    hub.publish(NAME, BUNDLED)
    loaded, expected = kind.from_pretrained(NAME), kind.from_pretrained(BUNDLED)
    if isinstance(loaded, torch.nn.Module):
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), expected.parameters(), strict=True))
        loaded, expected = loaded.config, expected.config
    assert loaded == expected


def test_only_what_is_needed_is_downloaded(hub, tmp_path, small_ctc):
    folder = tmp_path / "repo"
    shutil.copytree(small_ctc, folder)
    (folder / "README.md").write_text("words")
    shutil.copy(folder / "model.safetensors", folder / "pytorch_model.bin")
    hub.publish("org/more", folder)
    wanted = {
        SEWDConfig: {"config.json"},
        FeatureExtractor: {"preprocessor_config.json"},
        SEWDForCTC: {"model.safetensors"},
        CTCTokenizer: {"vocab.json", "tokenizer_config.json"},
    }
    for kind, files in wanted.items():
        kind.from_pretrained("org/more")
        got = {request.rpartition("/")[2] for request in hub.requests() if request.startswith("GET")}
        assert {name.partition("?")[0] for name in got} == files
    for kind in wanted:
        kind.from_pretrained("org/more")
        assert not any(request.startswith("GET") for request in hub.requests())
    assert hub.server.leaks == []


@pytest.mark.parametrize("layout", ["pickle", "shards"])
def test_weights_in_other_layouts(hub, tmp_path, small_ctc, layout):
    folder = tmp_path / "repo"
    shutil.copytree(small_ctc, folder)
    tensors = SEWDForCTC.from_pretrained(small_ctc).state_dict()
    (folder / "model.safetensors").unlink()
    if layout == "pickle":
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        names = [f"pytorch_model-0000{index}-of-00002.bin" for index in (1, 2)]
        where = {key: names[index % 2] for index, key in enumerate(tensors)}
        for name in names:
            torch.save({key: tensors[key] for key in tensors if where[key] == name}, folder / name)
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    hub.publish("org/older", folder)
    assert bias("org/older") == bias(small_ctc)


def test_a_branch_moves_and_a_commit_stays(hub, other):
    first = bias(NAME)
    second = hub.publish(NAME, other, "main", "v2")
    assert bias(NAME) == bias(f"{NAME}@{second}") == bias(NAME, revision="v2") == bias(other) != first
    hub.requests()
    assert bias(f"{NAME}@{hub.commit}") == first
    assert bias(NAME, revision=hub.commit) == first
    assert hub.requests() == []  # what a commit holds is known
    with pytest.raises(ValueError, match="another revision"):
        SEWDForCTC.from_pretrained(f"{NAME}@v2", revision="main2")


def test_another_cache_is_used(hub, tmp_path):
    SEWDForCTC.from_pretrained(NAME, cache_dir=tmp_path / "mine")
    assert (tmp_path / "mine" / "models--org--sew-d").is_dir()
    assert not list(hub.cache.glob("models--*"))


# Private models.


def test_a_private_model_needs_its_token(tmp_path, small_ctc, monkeypatch, caplog, capfd):
    with model_hub(tmp_path / "cache", token=TOKEN) as models:
        models.publish(NAME, small_ctc)
        assert bias(NAME) == bias(small_ctc)  # by HF_TOKEN
        assert models.server.leaks == []  # the host of the weights does not see it
        shutil.rmtree(tmp_path / "cache")
        assert "answered 401" in refusal(token=False)
        assert "answered 401" in refusal(token="hf_wrong")
        monkeypatch.setenv("HF_TOKEN", "hf_other")
        assert bias(NAME, token=TOKEN) == bias(small_ctc)
        assert "HF_TOKEN, or run `hf auth login`" in refusal("org/other")
    printed = capfd.readouterr()
    stored = "".join(path.read_text(errors="replace") for path in (tmp_path / "cache").rglob("*.json"))
    assert TOKEN not in caplog.text + printed.out + printed.err + stored


# What is refused.


def test_a_mistyped_name_says_what_was_tried(hub, monkeypatch):
    message = refusal("orgg/sew-d")
    assert f"there is no directory {Path.cwd()}/orgg/sew-d, and http://127.0.0.1" in message
    assert "answered 401 for orgg/sew-d" in message
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "has no model orgg/sew-d (404)" in refusal("hf://orgg/sew-d")
    assert "directory" not in refusal("hf://orgg/sew-d")
    assert f"has no revision v9 of {NAME}" in refusal(f"{NAME}@v9")
    assert "is no name of the hub" in refusal("org/a--b")
    assert f"there is no directory {Path.cwd()}/sew-d (a checkpoint on the hub is named ORG/NAME)" in refusal("sew-d")


OTHERS = {
    "wav2vec2": "Wav2Vec2ForCTC",
    "whisper": "WhisperForConditionalGeneration",
    "sew": "SEWForCTC",
    "hubert": "HubertForCTC",
    "x\n\x1b[2Jy": None,
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("load", [SEWDForCTC, SEWDConfig, SEWDForSequenceClassification])
def test_another_architecture_is_refused_before_its_weights_are_downloaded(hub, tmp_path, kind, load):
    folder = tmp_path / "repo"
    folder.mkdir()
    classes = {"architectures": [OTHERS[kind]]} if OTHERS[kind] else {}
    (folder / "config.json").write_text(json.dumps({"model_type": kind, **classes}))
    (folder / "model.safetensors").write_bytes(b"large")
    commit = hub.publish("org/other", folder)
    for location, where in (("org/other", f"org/other@{commit[:12]}"), (folder, str(folder))):
        message = refusal(location, load=load)
        assert message.startswith(f"{where} is a ")
        assert message.endswith("a SEW-D checkpoint is needed (model_type sew-d)")
        assert "\x1b" not in message
        if OTHERS[kind]:
            assert f"is a {kind} checkpoint ({OTHERS[kind]})" in message
    assert not any("safetensors" in request for request in hub.requests())


def test_a_repository_without_a_checkpoint_is_refused(hub, tmp_path):
    (tmp_path / "empty").mkdir()
    hub.publish("org/empty", tmp_path / "empty")
    assert "org/empty on http://127.0.0.1" in (message := refusal("org/empty"))
    assert "has no config.json" in message
    shutil.copy(BUNDLED / "config.json", tmp_path / "empty")
    hub.publish("org/empty", tmp_path / "empty")
    assert "no weights in org/empty@" in refusal("org/empty")


def test_a_shard_outside_the_repository_is_not_asked_for(hub, tmp_path):
    folder = tmp_path / "repo"
    folder.mkdir()
    shutil.copy(BUNDLED / "config.json", folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    hub.publish("org/hostile", folder)
    assert "names a shard outside its directory" in refusal("org/hostile")
    assert not any("passwd" in request for request in hub.requests())


def test_a_json_file_that_is_too_large_is_not_downloaded(hub, monkeypatch):
    monkeypatch.setattr("sewd_model.hub.MAX_JSON_BYTES", 50)
    assert "too many for a JSON file" in refusal()
    assert not any(request.startswith("GET") for request in hub.requests())


def test_code_of_a_repository_is_neither_downloaded_nor_run(hub, tmp_path, small_ctc):
    folder = tmp_path / "repo"
    shutil.copytree(small_ctc, folder)
    trace = tmp_path / "trace"
    (folder / "modeling.py").write_text(f"import pathlib; pathlib.Path({str(trace)!r}).touch()")
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {"AutoModelForCTC": "modeling.Model"}, "custom_pipelines": {"x": {"impl": "modeling.Model"}}}
    (folder / "config.json").write_text(json.dumps(config))
    hub.publish("org/code", folder)
    assert bias("org/code") == bias(small_ctc)
    Processor.from_pretrained("org/code")
    assert not any("modeling" in request for request in hub.requests())
    assert not trace.exists()


# A hub that fails.


def test_a_hub_that_is_down(hub, monkeypatch):
    with web_server(None) as server:  # its port is free once it is closed
        closed = f"http://127.0.0.1:{server.server_port}"
    endpoint = os.environ["HF_ENDPOINT"]
    monkeypatch.setenv("HF_ENDPOINT", closed)
    message = refusal(kind=OSError)
    assert f"{closed} cannot be reached: ConnectError, and {hub.cache} has no config.json of {NAME}" in message
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    hub.server.failures = 1
    assert "answered 503" in refusal(kind=OSError)
    before = bias(NAME)
    hub.server.failures = 10**6
    assert bias(NAME) == before  # from the cache
    monkeypatch.setenv("HF_ENDPOINT", closed)
    assert bias(NAME) == before
    assert "preprocessor_config.json" in refusal(kind=OSError, load=Processor)


def test_a_hub_that_does_not_answer(hub, small_ctc):
    hub.server.slow_s = 3
    assert "cannot be reached: ReadTimeout" in refusal(kind=OSError)
    hub.server.slow_s = 0
    SEWDConfig.from_pretrained(NAME)
    hub.server.slow_s = 3
    assert SEWDConfig.from_pretrained(NAME) == SEWDConfig.from_pretrained(small_ctc)


def test_a_file_that_is_cut_short_is_never_used(hub, small_ctc, monkeypatch, caplog):
    monkeypatch.setattr(file_download.time, "sleep", lambda _: None)
    hub.server.cut = ("model.safetensors",)
    message = refusal(kind=OSError)
    assert f"model.safetensors of {NAME} on http://127.0.0.1" in message
    assert "could not be downloaded" in message
    assert not list(hub.cache.rglob("model.safetensors"))
    assert not list(hub.cache.rglob("*.incomplete"))
    assert "Error while downloading from http://localhost" in caplog.text
    assert SIGNATURE not in caplog.text + message
    hub.server.cut = ()
    assert bias(NAME) == bias(small_ctc)


# Offline.


def test_offline_the_cache_is_enough(hub, small_ctc, monkeypatch):
    kinds = (SEWDForCTC, Processor)
    for kind in kinds:
        kind.from_pretrained(NAME)
    hub.requests()
    for kind in kinds:
        kind.from_pretrained(NAME, local_files_only=True)
        kind.from_pretrained(f"{NAME}@{hub.commit}", local_files_only=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert bias(NAME) == bias(small_ctc)
    assert hub.requests() == []


def test_offline_a_checkpoint_that_the_cache_lacks_is_refused(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = refusal()
    assert f"the hub is not asked (HF_HUB_OFFLINE or local_files_only), and {hub.cache} has no config.json" in message
    assert message.endswith(f"download it once with `hf download {NAME}`")
    assert hub.requests() == []


def test_offline_a_file_is_absent_only_if_that_is_known(hub, small_ctc):
    """A cache without `preprocessor_config.json`, which the repository has, must not mean the default settings."""
    SEWDForCTC.from_pretrained(NAME)
    assert "has no preprocessor_config.json" in refusal(load=FeatureExtractor, local_files_only=True)
    huggingface_hub.snapshot_download(NAME, endpoint=os.environ["HF_ENDPOINT"])
    hub.requests()
    assert Processor.from_pretrained(NAME, local_files_only=True) == Processor.from_pretrained(small_ctc)
    assert hub.requests() == []


def test_directories_of_the_cache_are_shown_by_name():
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert shown(f"/home/user/.cache/huggingface/hub/models--org--a--b/snapshots/{commit}") == "org/a--b@0123456789ab"
    assert HubName("org/name", commit).is_pinned
    assert not HubName("org/name", "v1").is_pinned
