"""The training loop: it learns, resumes exactly, and saves checkpoints that this project and transformers read."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import safetensors.torch
import soundfile
import torch

from pipeline.errors import RunFailedError, UsageError
from pipeline.training import loop
from pipeline.training.loop import prefetched, rate_factor, train
from pipeline.training.model import TrainingModel
from pipeline.training.settings import Schedule, TrainSettings, make_data_settings, make_settings
from sewd_model.config import SEWDConfig
from sewd_model.ctc import CTCTokenizer, greedy_path
from sewd_model.features import FeatureExtractor
from sewd_model.files import CheckpointError
from sewd_model.model import SEWDForCTC, SEWDForSequenceClassification
from tests.support.tones import write_config, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("tones"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write_config(tmp_path_factory.mktemp("tiny"))


def settings(corpus: Path, output: Path, **values) -> TrainSettings:
    data = make_data_settings(batch_s=12.0, **values.pop("data", {}))
    defaults = {"train": ((str(corpus), 1.0),), "output": str(output), "data": data, "threads": 1}
    return make_settings(**(defaults | values))


def short(corpus: Path, output: Path, tiny: Path, **values) -> TrainSettings:
    """Settings for a few steps with every kind of randomness."""
    data = {"augment": {"speed": 0.5, "noise": 0.5, "gain": 0.5, "codec": 0.1}, "join_max": 3, "seed": 5}
    config = write_config(output.parent, mask_time_prob=0.1, mask_time_min_masks=1, final_dropout=0.2)
    defaults = {"config": str(config), "steps": 9, "checkpoint_every": 4, "accumulate": 2, "mel_steps": 2, "data": data}
    return settings(corpus, output, **(defaults | values))


def quiet(_line: str) -> None:
    pass


def rows(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def losses(output: Path) -> list[tuple]:
    return [(row["step"], row["loss"], row["grad_norm"], row["lr"]) for row in rows(output) if "loss" in row]


# -------------------------------------------------------------------------------------------------- it learns
@pytest.fixture(scope="module")
def trained(corpus, tiny, tmp_path_factory) -> Path:
    """A model that was trained until it has no error on its fifty utterances, with both heads."""
    output = tmp_path_factory.mktemp("trained") / "run"
    run_settings = settings(
        corpus,
        output,
        config=str(tiny),
        steps=400,
        mel_steps=30,
        label_weight=0.2,
        optimizer="muon",
        learning_rate=1e-3,
        warmup=0.05,
        hold=0.6,
        valid={"same": str(corpus)},
        valid_every=25,
        checkpoint_every=1000,
        save_dtype="float16",
    )
    lines = []

    def stop_when_perfect(line: str) -> None:
        lines.append(line)
        if "wer 0.00%" in line and "accuracy 100.00%" in line:
            raise StopIteration(line)

    try:
        train(run_settings, report=stop_when_perfect)
    except StopIteration:
        return output / "model"
    pytest.fail("\n".join(lines))


def test_fifty_utterances_are_learned_without_an_error(trained):
    """The fixture fails if the model has errors left."""
    assert (trained / "model.safetensors").is_file()


def test_both_heads_are_read_from_one_directory_and_by_transformers_too(trained, corpus):
    import transformers

    row = json.loads(corpus.read_text().splitlines()[1])  # has two words
    waveform, _ = soundfile.read(corpus.parent / row["audio_filepath"], dtype="float32")
    features, tokenizer = FeatureExtractor.from_pretrained(trained), CTCTokenizer.from_pretrained(trained)
    inputs = torch.from_numpy(features.prepare(waveform))[None]
    ctc, classifier = SEWDForCTC.from_pretrained(trained), SEWDForSequenceClassification.from_pretrained(trained)
    their_ctc = transformers.SEWDForCTC.from_pretrained(trained, dtype=torch.float32).eval()
    their_classifier = transformers.SEWDForSequenceClassification.from_pretrained(trained, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = ctc(inputs).logits
        torch.testing.assert_close(logits, their_ctc(inputs).logits, rtol=1e-3, atol=1e-3)
        scores = classifier(inputs).logits
        torch.testing.assert_close(scores, their_classifier(inputs).logits, rtol=1e-3, atol=1e-3)
    text = tokenizer.text(greedy_path(logits[0], ctc.blank, tokenizer.drop_ids).token_ids.tolist())
    assert text == row["text"].upper()
    assert classifier.config.id2label[int(scores.argmax())] == "two"
    assert their_classifier.config.id2label == {0: "one", 1: "two"}
    assert json.loads((trained / "config.json").read_text())["dtype"] == "float16"
    their_tokenizer = transformers.Wav2Vec2CTCTokenizer.from_pretrained(trained)
    assert their_tokenizer(text).input_ids == tokenizer.encode(text)


def test_training_starts_from_a_checkpoint_and_keeps_the_untrained_head(trained, corpus, tmp_path):
    unlabelled = [json.loads(line) for line in corpus.read_text().splitlines()]
    for row in unlabelled:
        del row["label"]
        row["audio_filepath"] = str(corpus.parent / row["audio_filepath"])
    manifest = tmp_path / "texts.jsonl"
    manifest.write_text("\n".join(map(json.dumps, unlabelled)))
    output = tmp_path / "run"
    train(settings(manifest, output, init=str(trained), steps=3, learning_rate=1e-5), report=quiet)
    assert rows(output)[0]["ctc"] < 0.5, "training did not start from the weights of the checkpoint"
    before = SEWDForSequenceClassification.from_pretrained(trained)
    after = SEWDForSequenceClassification.from_pretrained(output / "model")
    torch.testing.assert_close(after.classifier.weight, before.classifier.weight, rtol=1e-3, atol=1e-4)
    assert after.config.id2label == {0: "one", 1: "two"}


def test_other_labels_get_a_new_classifier(trained, corpus, tmp_path):
    renamed = corpus.read_text().replace('"label": "one"', '"label": "uno"').replace('"audio_filepath": "', "&")
    manifest = tmp_path / "renamed.jsonl"
    manifest.write_text(renamed.replace("&", f'"audio_filepath": "{corpus.parent}/'))
    output = tmp_path / "run"
    train(settings(manifest, output, init=str(trained), steps=2), report=quiet)
    assert SEWDForSequenceClassification.from_pretrained(output / "model").config.id2label == {0: "two", 1: "uno"}
    assert rows(output)[0]["ctc"] < 1.0


# ------------------------------------------------------------------------------------------------- it resumes
def test_equal_seeds_give_equal_runs_and_different_seeds_do_not(corpus, tiny, tmp_path):
    first, second, other = (short(corpus, tmp_path / name / "run", tiny) for name in "abc" if _make(tmp_path / name))
    train(first, report=quiet)
    train(second, report=quiet)
    train(dataclasses.replace(other, data=dataclasses.replace(other.data, seed=6), prefetch=0), report=quiet)
    outputs = [Path(run.output) for run in (first, second, other)]
    assert losses(outputs[0]) == losses(outputs[1])
    assert losses(outputs[0]) != losses(outputs[2])
    first_weights, second_weights = (output / "model" / "model.safetensors" for output in outputs[:2])
    assert first_weights.read_bytes() == second_weights.read_bytes()


def _make(directory: Path) -> bool:
    directory.mkdir()
    return True


CHILD = """
import sys, time
from pathlib import Path
import torch
from pipeline.training.settings import settings_from_json
from pipeline.training.loop import train
import json

torch.set_num_threads(1)
progress = Path(sys.argv[2])
import pipeline.training.loop as loop
step = loop._step
def step_and_hang_at_7(*arguments):
    row = step(*arguments)
    progress.write_text(str(row["step"]))
    if row["step"] == 7:
        time.sleep(600)
    return row
loop._step = step_and_hang_at_7
train(settings_from_json(json.loads(sys.argv[1])), report=lambda line: None)
"""


def test_a_killed_and_resumed_training_has_the_losses_and_weights_of_an_undisturbed_one(corpus, tiny, tmp_path):
    for name in "ab":
        _make(tmp_path / name)
    undisturbed, killed = (short(corpus, tmp_path / name / "run", tiny) for name in "ab")
    train(undisturbed, report=quiet)
    progress = tmp_path / "progress"
    arguments = [sys.executable, "-c", textwrap.dedent(CHILD), json.dumps(dataclasses.asdict(killed)), str(progress)]
    child = subprocess.Popen(arguments, cwd=Path(__file__).parents[3])
    try:
        deadline = time.monotonic() + 120
        while not (progress.exists() and progress.read_text() == "7"):
            assert child.poll() is None, "the training ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    output = Path(killed.output)
    assert [p.name for p in sorted((output / "checkpoints").iterdir())] == ["step-00000004.pt"]
    train(killed, report=quiet)
    assert losses(output) == losses(Path(undisturbed.output))
    assert [row["step"] for row in rows(output)] == list(range(1, 10)), "a step was logged twice, or not at all"
    weights, expected = (Path(o) / "model" / "model.safetensors" for o in (killed.output, undisturbed.output))
    assert weights.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_training_stops_after_its_time_limit_and_the_same_command_resumes_it(corpus, tiny, tmp_path, optimizer):
    for name in "ab":
        _make(tmp_path / name)
    uninterrupted = short(corpus, tmp_path / "a" / "run", tiny, optimizer=optimizer)
    interrupted = short(corpus, tmp_path / "b" / "run", tiny, optimizer=optimizer, stop_after_s=0.0)
    train(uninterrupted, report=quiet)
    outcomes = []
    while not outcomes or not outcomes[-1]["finished"]:
        outcomes.append(train(interrupted, report=quiet))
    assert [outcome["step"] for outcome in outcomes] == list(range(1, 10))
    assert losses(Path(interrupted.output)) == losses(Path(uninterrupted.output))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_weight_is_updated_by_exactly_one_optimizer(corpus, tiny, tmp_path, optimizer):
    run_settings = short(corpus, tmp_path / "run", tiny, optimizer=optimizer)
    model = TrainingModel(SEWDConfig.from_dict(json.loads(Path(run_settings.config).read_text())), with_classifier=True)
    updated = [
        [id(p) for group in o.param_groups for p in group["params"]]
        for o in loop.make_optimizers(model, run_settings, 1e-3)
    ]
    assert Counter(itertools.chain(*updated)) == Counter(id(p) for p in model.parameters())
    names = {id(p): name for name, p in model.named_parameters()}
    matrices = [names[i] for i in updated[-1]] if optimizer == "muon" else []
    layers = model.config.num_hidden_layers
    assert sum("attention" in name for name in matrices) == layers * (4 if optimizer == "muon" else 0)
    assert not [name for name in matrices if "encoder" not in name or "embeddings" in name or "lm_head" in name]


def test_a_torch_version_without_muon_is_a_usage_error(corpus, tiny, tmp_path, monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(UsageError, match="muon"):
        train(short(corpus, tmp_path / "run", tiny, optimizer="muon"), report=quiet)


def test_a_finished_training_does_not_change(corpus, tiny, tmp_path):
    run_settings = short(corpus, tmp_path / "run", tiny, steps=3)
    train(run_settings, report=quiet)
    before = rows(tmp_path / "run")
    assert train(run_settings, report=quiet)["step"] == 3
    assert rows(tmp_path / "run") == before


def test_a_resume_with_other_settings_names_them(corpus, tiny, tmp_path):
    run_settings = short(corpus, tmp_path / "run", tiny, steps=3)
    train(run_settings, report=quiet)
    with pytest.raises(UsageError, match="with other learning_rate"):
        train(dataclasses.replace(run_settings, learning_rate=1.0), report=quiet)


# ------------------------------------------------------------------------------------- the initial model is kept
def weights(directory: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(directory / "model.safetensors")


def test_a_training_that_worsens_the_model_keeps_the_initial_one_and_says_both(trained, corpus, tmp_path):
    """A rate that destroys the model within a few steps."""
    run_settings = settings(
        corpus,
        tmp_path / "run",
        init=str(trained),
        steps=6,
        learning_rate=3e-2,
        warmup=0.0,
        valid={"same": str(corpus)},
        valid_every=2,
    )
    lines = []
    outcome = train(run_settings, report=lines.append)
    first, *later = [row for row in rows(tmp_path / "run") if "valid" in row]
    assert first["step"] == 0
    assert first["error"] == 0.0
    assert all(row["error"] > 0.1 for row in later), "the training was meant to harm"
    assert (outcome["best"], outcome["best_step"]) == (0.0, 0)
    assert outcome["initial_scores"] == outcome["best_scores"] == first["valid"]
    kept, initial = weights(tmp_path / "run" / "model"), weights(trained)
    assert kept.keys() == initial.keys()
    for name, tensor in initial.items():
        torch.testing.assert_close(kept[name], tensor.float(), rtol=0, atol=0)
    assert not torch.equal(weights(tmp_path / "run" / "last")["lm_head.weight"], kept["lm_head.weight"])
    [line] = [line for line in lines if line.startswith("step 0: ")]
    assert "same wer 0.00%" in line


def test_a_better_model_replaces_the_initial_one(trained, corpus, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(trained, damaged)
    tensors = weights(trained)
    rng = torch.Generator().manual_seed(0)
    head = tensors["lm_head.weight"].float()
    tensors["lm_head.weight"] = head + head.std() * torch.randn(head.shape, generator=rng)
    safetensors.torch.save_file(tensors, damaged / "model.safetensors", {"format": "pt"})
    valid = {"same": str(corpus)}
    run_settings = settings(
        corpus, tmp_path / "run", init=str(damaged), steps=40, learning_rate=1e-3, valid=valid, valid_every=10
    )
    outcome = train(run_settings, report=quiet)
    before, after = outcome["initial_scores"]["same"]["wer"], outcome["best_scores"]["same"]["wer"]
    assert before > after
    assert outcome["best_step"] > 0
    again = train(settings(corpus, tmp_path / "again", init=str(tmp_path / "run" / "model"), steps=1, valid=valid))
    assert again["initial_scores"]["same"]["wer"] == after, "model/ is not the model of the best validation"


def test_a_training_that_is_killed_before_its_first_checkpoint_has_the_initial_model(trained, corpus, tmp_path):
    def stop_at_once(line: str) -> None:
        if line.startswith("step 0: "):
            raise StopIteration(line)

    run_settings = settings(corpus, tmp_path / "run", init=str(trained), steps=3, valid={"same": str(corpus)})
    with pytest.raises(StopIteration):
        train(run_settings, report=stop_at_once)
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    train(run_settings, report=quiet)
    measured = [row["step"] for row in rows(tmp_path / "run") if "valid" in row]
    assert measured == [0, 3], "the first validation is logged once"


def test_a_resumed_training_knows_what_it_began_with(trained, corpus, tmp_path):
    values = {"init": str(trained), "steps": 4, "valid": {"same": str(corpus)}, "valid_every": 2}
    whole = train(settings(corpus, tmp_path / "a", **values), report=quiet)
    outcome = {"finished": False}
    while not outcome["finished"]:
        outcome = train(settings(corpus, tmp_path / "b", stop_after_s=0.0, **values), report=quiet)
    assert outcome == whole
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    validations = [[row | {"wall_s": 0} for row in rows(tmp_path / n) if "valid" in row] for n in "ab"]
    assert validations[0] == validations[1]
    last = [weights(tmp_path / name / "last") for name in "ab"]
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[0])


# ------------------------------------------------------------------------------------------ errors of the data
def with_errors(corpus: Path, directory: Path, number: int, text: str = "ab") -> Path:
    """The manifest with `number` more rows whose audio is missing or no audio."""
    (directory / "noise.wav").write_bytes(b"no audio")
    lines = [json.loads(line) for line in corpus.read_text().splitlines()]
    for row in lines:
        row["audio_filepath"] = str(corpus.parent / row["audio_filepath"])
    names = itertools.islice(itertools.cycle(("missing.wav", "noise.wav")), number)
    manifest = directory / "with-errors.jsonl"
    lines += [{"audio_filepath": name, "text": text, "label": "one", "duration": 1.0} for name in names]
    manifest.write_text("\n".join(map(json.dumps, lines)))
    return manifest


def test_rows_that_cannot_be_read_are_counted_and_the_others_train(corpus, tiny, tmp_path):
    manifest = with_errors(corpus, tmp_path, 3)
    for name in "ab":
        _make(tmp_path / name)
    lines = []
    values = {"steps": 3, "mel_steps": 0}
    outcome = train(
        short(manifest, tmp_path / "a" / "run", tiny, valid={"v": str(manifest)}, **values), report=lines.append
    )
    assert outcome["finished"]
    assert outcome["errors"] == 6
    table = pq.read_table(tmp_path / "a" / "run" / "errors").to_pylist()
    assert [(row["set"], row["code"]) for row in table[:3]] == [
        ("train", "MISSING"),
        ("train", table[1]["code"]),
        ("train", "MISSING"),
    ]
    assert [row["set"] for row in table[3:]] == ["valid v"] * 3
    before_the_first_step = lines[: next(i for i, line in enumerate(lines) if line.startswith("step"))]
    assert any(line.startswith("train: 3 of 53 rows cannot be used") for line in before_the_first_step)
    assert any(line.startswith("valid v: 3 of 53 rows cannot be used") for line in before_the_first_step)
    data = json.loads((tmp_path / "a" / "run" / "data.json").read_text())
    assert data["sets"]["train"]["rows"] == 53
    assert data["sets"]["train"]["clips"] == 50
    assert sum(data["sets"]["train"]["errors"].values()) == 3
    train(short(corpus, tmp_path / "b" / "run", tiny, **values), report=quiet)
    assert losses(tmp_path / "a" / "run") == losses(tmp_path / "b" / "run"), "a failed row changed the training"


def test_too_many_failed_rows_end_the_start_and_leave_their_table_and_no_obstacle(corpus, tiny, tmp_path):
    manifest = with_errors(corpus, tmp_path, 6)
    values = {"steps": 2, "mel_steps": 0}
    with pytest.raises(RunFailedError, match=r"6 of 56 rows failed, more than --max-error-rate 0\.1"):
        train(short(manifest, tmp_path / "run", tiny, max_error_rate=0.1, **values), report=quiet)
    assert pq.read_table(tmp_path / "run" / "errors").num_rows == 6
    outcome = train(short(manifest, tmp_path / "run", tiny, max_error_rate=0.2, **values), report=quiet)
    assert outcome["errors"] == 6


def test_unknown_characters_are_shown_before_the_first_step_and_recorded(corpus, tiny, tmp_path):
    lines = [json.loads(line) for line in corpus.read_text().splitlines()]
    for row in lines:
        row["audio_filepath"] = str(corpus.parent / row["audio_filepath"])
    lines[3]["text"] = "Crème brûlée 7"
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("\n".join(map(json.dumps, lines)))
    shown = []
    train(short(manifest, tmp_path / "run", tiny, steps=1, mel_steps=0), report=shown.append)
    [line] = [line for line in shown if "vocabulary" in line]
    assert line.startswith("train: 1 of 50 texts")
    assert all(f"{character!r} 1" in line for character in "èûé7")
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    assert data["sets"]["train"]["unknown_characters"] == dict.fromkeys("7èéû", 1)
    assert data["sets"]["train"]["texts_with_unknown_characters"] == 1


def test_a_resume_after_a_file_was_lost_goes_on_and_says_so(corpus, tiny, tmp_path):
    shutil.copytree(corpus.parent, tmp_path / "tones")
    manifest = tmp_path / "tones" / corpus.name
    run_settings = short(manifest, tmp_path / "run", tiny, steps=3, mel_steps=0, stop_after_s=0.0)
    shown = []
    train(run_settings, report=shown.append)
    assert not any("changed" in line for line in shown)
    (tmp_path / "tones" / "07.wav").unlink()
    train(run_settings, report=shown.append)
    [line] = [line for line in shown if "changed" in line]
    assert "train: 50 clips then, 49 now" in line
    outcome = train(run_settings, report=shown.append)
    assert (outcome["finished"], outcome["errors"]) == (True, 1)


# ----------------------------------------------------------------------------------------- a start that is refused
@pytest.mark.parametrize(
    "changes",
    [
        {"config": None, "init": "/nowhere/model"},
        {"config": "/nowhere/config.json"},
        {"train": (("/nowhere/m.jsonl", 1.0),)},
        {"valid": {"v": "/nowhere/v.jsonl"}},
    ],
)
def test_a_refused_start_leaves_nothing_behind(corpus, tiny, tmp_path, changes):
    with pytest.raises((UsageError, CheckpointError)):
        train(short(corpus, tmp_path / "run", tiny, steps=3, **changes), report=quiet)
    assert not (tmp_path / "run").exists()
    assert train(short(corpus, tmp_path / "run", tiny, steps=3), report=quiet)["finished"]


def test_too_few_batches_for_the_workers_are_refused_before_anything_is_written(corpus, tiny, tmp_path):
    with pytest.raises(UsageError, match="too few for 1000 workers"):
        train(short(corpus, tmp_path / "run", tiny), loop.Worker(size=1000), report=quiet)
    assert not (tmp_path / "run").exists()


def test_a_training_that_failed_before_its_first_checkpoint_does_not_block_another(corpus, tiny, tmp_path):
    values = {"mel_steps": 0, "steps": 3, "valid": {"v": str(corpus)}}
    with pytest.raises(RunFailedError, match="lower the learning rate"):
        train(
            short(corpus, tmp_path / "run", tiny, learning_rate=1e30, warmup=0.0, valid_every=5, **values), report=quiet
        )
    assert (tmp_path / "run" / "finetune.json").exists()
    outcome = train(short(corpus, tmp_path / "run", tiny, learning_rate=1e-3, **values), report=quiet)
    assert outcome["step"] == 3
    assert [row["step"] for row in rows(tmp_path / "run") if "loss" in row] == [1, 2, 3]


# ---------------------------------------------------------------------------------------------- the details
def test_the_best_weights_are_kept_and_training_ends_when_patience_does(corpus, tiny, tmp_path):
    run_settings = short(
        corpus,
        tmp_path / "run",
        tiny,
        steps=40,
        valid={"v": str(corpus)},
        valid_every=2,
        patience=2,
        learning_rate=1e-9,
    )
    outcome = train(run_settings, report=quiet)
    measured = [row for row in rows(tmp_path / "run") if "valid" in row]
    assert outcome["best"] == min(row["error"] for row in measured)
    assert outcome["step"] < 40
    assert len(measured) == 1 + outcome["best_step"] // 2 + 2, "one before the first step, and two without a better one"
    assert set(measured[0]["valid"]["v"]) == {"wer", "cer", "accuracy"}


def test_the_learning_rate_rises_holds_and_falls():
    schedule = Schedule(steps=1100, learning_rate=1.0, mel_steps=100, warmup=0.1, hold=0.4)
    factors = [rate_factor(step, schedule) for step in range(1100)]
    assert factors[99] == 1.0
    assert factors[100] == pytest.approx(0.01)
    assert factors[199:600] == [1.0] * 401
    assert all(a > b for a, b in itertools.pairwise(factors[600:]))
    assert factors[-1] == pytest.approx(0.05, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "steps: must be from 1 to 10,000,000"),
        ({"steps": 10**9}, "steps: must be from 1 to 10,000,000"),
        ({"valid_every": 0}, "valid-every: must be from 1 to 10,000,000"),
        ({"checkpoint_every": -1}, "checkpoint-every: must be from 1 to"),
        ({"patience": 0}, "patience: must be from 1 to"),
        ({"threads": 0}, "threads: must be from 1 to"),
        ({"stop_after_s": -1.0}, "stop-after: .*greater than or equal to 0"),
        ({"max_error_rate": 1.5}, "max-error-rate: .*less than or equal to 1"),
        ({"accumulate": 0}, "accumulate"),
        ({"learning_rate": 0.0}, "learning-rate"),
        ({"warmup": 0.7, "hold": 0.4}, "warmup and hold"),
        ({"mel_steps": 9}, "mel-steps"),
        ({"config": None}, "either a checkpoint"),
        ({"config": "/nowhere/config.json"}, "no configuration"),
        ({"save_dtype": "int8"}, "save-dtype"),
        ({"valid": {"v": "/nowhere/v.jsonl"}}, "no such file"),
    ],
)
def test_invalid_settings_are_a_usage_error(corpus, tiny, tmp_path, changes, words):
    with pytest.raises(UsageError, match=words):
        train(short(corpus, tmp_path / "run", tiny, **changes), report=quiet)


def test_a_validation_label_without_training_data_is_a_usage_error(corpus, tiny, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"audio_filepath": str(corpus.parent / "00.wav"), "label": "three"}))
    with pytest.raises(UsageError, match="not in the training data: three"):
        train(short(corpus, tmp_path / "run", tiny, valid={"v": str(other)}), report=quiet)


def test_labels_to_validate_a_model_without_classifier_are_a_usage_error(corpus, tmp_path, tiny):
    rows = [json.loads(line) for line in corpus.read_text().splitlines()]
    unlabelled = tmp_path / "unlabelled.jsonl"
    audio = {"audio_filepath": str(corpus.parent / "00.wav")}
    unlabelled.write_text("\n".join(json.dumps({**audio, "text": row["text"]}) for row in rows[:8] if row.get("text")))
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({**audio, "label": "one"}))
    with pytest.raises(UsageError, match="valid v: no row has a text to score the model on"):
        train(short(unlabelled, tmp_path / "run", tiny, valid={"v": str(other)}), report=quiet)


def test_a_diverging_training_fails_with_advice(corpus, tiny, tmp_path):
    with pytest.raises(RunFailedError, match="lower the learning rate"):
        train(short(corpus, tmp_path / "run", tiny, learning_rate=1e30, mel_steps=0, warmup=0.0), report=quiet)


def test_an_initial_checkpoint_without_a_config_is_an_error(corpus, tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        train(settings(corpus, tmp_path / "run", init=str(tmp_path)), report=quiet)


def test_a_clip_of_silence_trains_the_blank(corpus, tiny, tmp_path):
    silent_rows = [{"audio_filepath": str(corpus.parent / "00.wav"), "duration": 1.0, "text": ""}]
    manifest = tmp_path / "silence.jsonl"
    manifest.write_text("\n".join(map(json.dumps, silent_rows)))
    train(short(manifest, tmp_path / "run", tiny, steps=6, mel_steps=0, learning_rate=1e-3), report=quiet)
    measured = [row["ctc"] for row in rows(tmp_path / "run")]
    assert measured[0] > 1
    assert measured[-1] < measured[0]


def test_an_error_in_a_prefetched_item_is_raised_where_the_item_is_taken():
    def items():
        yield 1
        raise KeyError("two")

    with prefetched(items(), 2) as source:
        assert next(source) == 1
        with pytest.raises(KeyError):
            next(source)
