"""The configuration of a run: wrong values are reported on one line, and a fingerprint identifies the run."""

import dataclasses
import json
from pathlib import Path

import pytest

from pipeline.config import DECODING, make_config
from pipeline.errors import StorageError, UsageError
from pipeline.runs.fingerprint import cut_of, differences, dtype_of, fingerprint
from pipeline.storage import objects, retry
from pipeline.storage.checkpoints import checkpoint_digest
from sewd_model.files import located
from tests.support import s3

WANTED = {"inputs": ("corpus",), "output": "run", "model": "model"}


def config(**changes):
    return make_config(**WANTED | changes)


@pytest.fixture
def checkpoint(tmp_path):
    return write_checkpoint(tmp_path / "model")


def write_checkpoint(path):
    path.mkdir()
    for name in ("config.json", "vocab.json", "preprocessor_config.json", "model.safetensors"):
        (path / name).write_text(name)
    return path


# Values.


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({"inputs": ()}, "inputs", "at least 1"),
        ({"inputs": ("",)}, "inputs", "at least 1"),
        ({"output": ""}, "output", "at least 1"),
        ({"model": ""}, "model", "at least 1"),
        ({"max_segment_s": 0.5}, "max-segment", "greater than or equal to 1"),
        ({"max_segment_s": float("nan")}, "max-segment", "finite"),
        ({"max_segment_s": "long"}, "max-segment", "valid number"),
        ({"chunk_s": float("inf")}, "chunk-seconds", "finite|less than"),
        ({"chunk_rows": 0}, "chunk-rows", "greater than or equal to 1"),
        ({"limit": 0}, "limit", "greater than or equal to 1"),
        ({"part_mib": 0}, "part-mib", "greater than 0"),
        ({"max_error_rate": 1.5}, "max-error-rate", "less than or equal to 1"),
        ({"channels": "left"}, "channels", "mix"),
        ({"channels": -1}, "channels", ""),
        ({"normalizer": "none-such"}, "normalizer", "choose one of"),
        ({"actors": 0}, "actors", "greater than or equal to 1"),
        ({"cpus_per_actor": 0}, "cpus-per-actor", "greater than 0"),
        ({"gpus_per_actor": -1}, "gpus-per-actor", "greater than or equal to 0"),
        ({"dtype": "float64"}, "dtype", "'auto', 'float32', 'bfloat16', 'float16' or 'int8'"),
        ({"treads": 4}, "treads", "Unexpected keyword"),
        ({"classifiers": ("=dir",)}, "classifier", "neither MODEL nor NAME=MODEL"),
        ({"classifiers": ("name=",)}, "classifier", "neither MODEL nor NAME=MODEL"),
        ({"classifiers": ("a/emotion", "b/emotion")}, "classifier", "two have the name emotion"),
        ({"classifiers": ("",)}, "classifier", "at least 1"),
        ({"actors": 2, "min_actors": 3}, "actors", "3:2 is not a range"),
        ({"min_actors": 0}, "actors", "greater than or equal to 1"),
        ({"beam": 0}, "beam", "greater than or equal to 1"),
        ({"nbest": 0}, "nbest", "greater than or equal to 1"),
        ({"lm_weight": -1}, "lm-weight", "greater than or equal to 0"),
    ],
)
def test_a_wrong_value_is_reported_on_one_line_that_begins_with_its_option(changes, name, words):
    with pytest.raises(UsageError, match=f"^{name}: .*({words})") as caught:
        config(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["inputs", "output"])
def test_a_missing_value_is_reported_on_one_line(name):
    with pytest.raises(UsageError, match=f"^{name}: "):
        make_config(**{key: value for key, value in WANTED.items() if key != name})


def test_paths_are_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = config(inputs=("corpus/*.wav", "s3://bucket/c/"), output="./run/", classifiers=("x=cls",))
    assert made.inputs == (f"{tmp_path}/corpus/*.wav", "s3://bucket/c")
    assert made.output == f"{tmp_path}/run"
    assert made.model == f"{tmp_path}/model"
    assert made.tasks == {"x": f"{tmp_path}/cls"}
    assert make_config(**dataclasses.asdict(made)) == made


def test_the_bundled_model_is_the_default_and_keeps_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = make_config(inputs=("a.wav",), output="run", classifiers=("bundled", "keyword=bundled"))
    assert made.model == "bundled"
    assert made.tasks == {"bundled": "bundled", "keyword": "bundled"}
    assert config(model="./bundled").model == f"{tmp_path}/bundled"
    assert config(model=Path("./bundled")).model == f"{tmp_path}/bundled"
    assert checkpoint_digest("bundled") == checkpoint_digest(located("bundled"))


@pytest.mark.parametrize(
    ("spec", "task", "uri"),
    [
        ("emotion", "emotion", "{cwd}/emotion"),
        ("models/emotion/", "emotion", "{cwd}/models/emotion"),
        ("mood=models/emotion", "mood", "{cwd}/models/emotion"),
        ("s3://bucket/a=b/emotion", "emotion", "s3://bucket/a=b/emotion"),
        ("mood=s3://bucket/a=b", "mood", "s3://bucket/a=b"),
        (".", "{name}", "{cwd}"),
        ("org/emotion@v1", "emotion", "org/emotion@v1"),
        ("mood=hf://org/emotion", "mood", "hf://org/emotion"),
    ],
)
def test_a_task_has_the_given_name_or_that_of_its_directory(tmp_path, monkeypatch, spec, task, uri):
    monkeypatch.chdir(tmp_path)
    wanted = {task.format(name=tmp_path.name): uri.format(cwd=tmp_path)}
    assert config(classifiers=(spec,)).tasks == wanted


# Checkpoints.


@pytest.mark.parametrize("name", ["config.json", "vocab.json", "preprocessor_config.json", "model.safetensors"])
def test_the_digest_depends_on_every_file_that_results_depend_on(checkpoint, name):
    before = checkpoint_digest(str(checkpoint))
    (checkpoint / name).write_text(name.upper())
    assert checkpoint_digest(str(checkpoint)) != before


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "pytorch_model.bin", "tokenizer_config.json"])
def test_the_digest_depends_on_added_files(checkpoint, name):
    before = checkpoint_digest(str(checkpoint))
    (checkpoint / name).write_text("x")
    assert checkpoint_digest(str(checkpoint)) != before


def test_the_digest_depends_on_the_names_of_files(checkpoint):
    before = checkpoint_digest(str(checkpoint))
    (checkpoint / "vocab.json").rename(checkpoint / "tokenizer_config.json")  # the same bytes at the same place
    assert checkpoint_digest(str(checkpoint)) != before


def test_the_digest_ignores_files_that_results_do_not_depend_on(checkpoint):
    before = checkpoint_digest(str(checkpoint))
    (checkpoint / "checkpoint-500").mkdir()
    for name in ("README.md", "optimizer.pt", "training_args.bin", "trainer_state.json", ".gitattributes"):
        (checkpoint / name).write_text("x")
    for name in ("config.json", "model.safetensors"):
        (checkpoint / "checkpoint-500" / name).write_text("an earlier state of the training")
    assert checkpoint_digest(str(checkpoint)) == before


def test_the_digest_does_not_depend_on_where_the_checkpoint_is_stored(checkpoint, tmp_path):
    here = checkpoint_digest(str(checkpoint))
    assert checkpoint_digest(str(checkpoint.rename(tmp_path / "elsewhere"))) == here
    with s3.moto_server():
        base = s3.make_bucket("bucket")
        for path in (tmp_path / "elsewhere").iterdir():
            objects.put(f"{base}/model/{path.name}", path.read_bytes())
        assert checkpoint_digest(f"{base}/model") == here


def test_a_missing_checkpoint_is_a_usage_error(tmp_path):
    (tmp_path / "nested" / "deeper").mkdir(parents=True)
    (tmp_path / "nested" / "deeper" / "config.json").write_text("{}")
    (tmp_path / "file").write_text("x")
    for name in ("none", "nested", "file"):
        with pytest.raises(UsageError, match=f"no model at {tmp_path}/{name}"):
            checkpoint_digest(str(tmp_path / name))


def test_a_checkpoint_that_must_not_be_read_is_not_reported_as_missing(monkeypatch):
    monkeypatch.setattr(retry, "BACKOFF_S", 0)
    with s3.forbidden_server(), pytest.raises(StorageError):
        checkpoint_digest("s3://bucket/model")


# Fingerprints.


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": ("other",)},
        {"columns": ("text=sentence",)},
        {"input_format": "csv"},
        {"limit": 5},
        {"allow_any_path": True},
        {"channels": "split"},
        {"max_segment_s": 30.0},
        {"cut": "vad"},
        {"skip_silence": False},
        {"word_gap_s": 0.0},
        {"normalizer": "none"},
        {"keep_posteriors": True},
        {"chunk_s": 60.0},
        {"chunk_rows": 10},
        {"dtype": "int8"},
        {"classifiers": ("emotion={model}",)},
    ],
)
def test_the_fingerprint_depends_on_what_rows_depend_on(checkpoint, changes):
    changes = {
        k: tuple(s.format(model=checkpoint) for s in v) if isinstance(v, tuple) else v for k, v in changes.items()
    }
    before = fingerprint(config(model=str(checkpoint)))
    (difference,) = differences(before, fingerprint(config(model=str(checkpoint), **changes)))
    assert difference.startswith(f"{next(iter(changes))}: ")


@pytest.mark.parametrize(
    "changes",
    [
        {"output": "elsewhere"},
        {"part_mib": 1.0},
        {"max_error_rate": 1.0},
        {"strict": True},
        {"deadline_s": 60.0},
        {"address": "auto"},
        {"actors": 4},
        {"actors": 4, "min_actors": 2},
        {"gpus_per_actor": 0.5},
        {"cpus_per_actor": 2},
        {"threads": 8},
    ],
)
def test_the_fingerprint_ignores_how_the_work_is_distributed(checkpoint, changes):
    assert fingerprint(config(model=str(checkpoint))) == fingerprint(config(model=str(checkpoint), **changes))


def test_a_beam_search_is_part_of_the_fingerprint(checkpoint):
    greedy, beam, more = (
        fingerprint(config(model=str(checkpoint), **changes)) for changes in ({}, {"beam": 4}, {"beam": 4, "nbest": 2})
    )
    assert differences(greedy, beam) == ["beam: None -> 4", "nbest: None -> 1"]
    assert differences(beam, more) == ["nbest: 1 -> 2"]
    assert fingerprint(config(model=str(checkpoint), beam=1)) == greedy


def test_every_field_is_in_one_of_the_two_lists_above():
    included = {
        "inputs",
        "limit",
        "channels",
        "max_segment_s",
        "cut",
        "skip_silence",
        "word_gap_s",
        "normalizer",
        "keep_posteriors",
        *DECODING,
        "chunk_s",
        "chunk_rows",
        "classifiers",
        "model",
        "dtype",
        "columns",
        "input_format",
        "allow_any_path",
    }
    ignored = {
        *(
            "output",
            "add_classifiers",
            "retry_errors",
            "part_mib",
            "max_error_rate",
            "strict",
            "deadline_s",
            "existing",
            "address",
        ),
        *("actors", "min_actors", "gpus_per_actor", "cpus_per_actor", "threads"),
    }
    assert included | ignored == {field.name for field in dataclasses.fields(config())}


def test_the_fingerprint_depends_on_the_bytes_of_weights_and_not_on_their_path(checkpoint, tmp_path):
    before = fingerprint(config(model=str(checkpoint)))
    moved = checkpoint.rename(tmp_path / "moved")
    assert fingerprint(config(model=str(moved))) == before
    (moved / "model.safetensors").write_text("other weights")
    assert [d.partition(":")[0] for d in differences(before, fingerprint(config(model=str(moved))))] == ["model"]


def test_a_fingerprint_is_the_same_after_it_was_stored_as_json(checkpoint):
    made = fingerprint(config(model=str(checkpoint), classifiers=(f"x={checkpoint}",)))
    assert differences(json.loads(json.dumps(made)), made) == []


def test_a_fingerprint_without_dtype_is_one_of_float32(checkpoint):
    made = fingerprint(config(model=str(checkpoint)))
    stored = {name: value for name, value in made.items() if name != "dtype"}
    assert differences(stored, made) == []
    assert differences(stored, made | {"dtype": "int8"}) == ["dtype: float32 -> int8"]
    assert dtype_of(stored) == "float32"


def test_a_run_in_float32_once_the_default_is_resumed_in_it(checkpoint):
    requested = fingerprint(config(model=str(checkpoint)))
    stored = requested | {"dtype": "float32"}
    assert requested["dtype"] == "auto"
    assert differences(stored, requested) == []
    assert dtype_of(stored) == "float32"
    assert differences(requested, stored) == ["dtype: auto -> float32"]
    assert differences(requested | {"dtype": "int8"}, requested) == ["dtype: int8 -> auto"]


def test_a_run_of_a_version_without_the_option_is_resumed_with_its_cuts(checkpoint):
    now = fingerprint(config(model=str(checkpoint)))
    then = {name: value for name, value in now.items() if name != "cut"}
    assert differences(then, now) == []
    assert (cut_of(then), cut_of(now)) == ("quietest", "pause")
    assert differences(then, fingerprint(config(model=str(checkpoint), cut="vad"))) == ["cut: pause -> vad"]


def test_differences_name_both_sides():
    assert differences({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 5, "d": 4}) == [
        "b: 2 -> 5",
        "c: 3 -> None",
        "d: None -> 4",
    ]
