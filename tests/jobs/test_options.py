"""An option is declared once: the command line and Python have the same options, with the same defaults."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest
import typer

from jobs.compare import compare
from jobs.evaluate import evaluate
from jobs.finetune import finetune
from jobs.redecode import redecode
from jobs.report import report
from jobs.transcribe import transcribe
from pipeline.config import DECODING, RedecodeConfig, RunConfig
from pipeline.config import OPTIONS as RUN_OPTIONS
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.report.content import ReportSettings
from pipeline.report.summary import Cost
from pipeline.scoring.rules import Scoring
from pipeline.settings import default_of
from pipeline.training.augment import parse_augmentations
from pipeline.training.settings import OPTIONS as TRAIN_OPTIONS
from pipeline.training.settings import DataSettings, TrainSettings, default_augment

# For each verb: the settings that an option sets, and the field, where its name is not that of the option.
SCORING = {
    "refs": (Scoring, "references"),
    "normalizer": (Scoring, "normalizer"),
    "compounds": (Scoring, "compounds"),
    "collar": (Scoring, "collar_s"),
    "by": (EvaluationSettings, "by"),
    "unit": (EvaluationSettings, "unit"),
    "level": (EvaluationSettings, "level"),
    "calibration": (EvaluationSettings, "calibration"),
}
SET_BY: dict[Any, dict[str, tuple[type, str]]] = {
    transcribe: {
        **{
            name: (RunConfig, name)
            for name in (
                *(
                    "inputs",
                    "output",
                    "model",
                    "channels",
                    "cut",
                    "skip_silence",
                    "normalizer",
                    "keep_posteriors",
                    *DECODING,
                    "limit",
                    "actors",
                    "gpus_per_actor",
                ),
                *("cpus_per_actor", "threads", "dtype", "chunk_rows", "part_mib", "max_error_rate", "strict"),
                "allow_any_path",
                "address",
            )
        },
        "classifier": (RunConfig, "classifiers"),
        "add_classifier": (RunConfig, "add_classifiers"),
        "retry_errors": (RunConfig, "retry_errors"),
        "max_segment": (RunConfig, "max_segment_s"),
        "word_gap": (RunConfig, "word_gap_s"),
        "chunk_seconds": (RunConfig, "chunk_s"),
        "deadline": (RunConfig, "deadline_s"),
        "column": (RunConfig, "columns"),
        "input_format": (RunConfig, "input_format"),
    },
    redecode: {
        **{name: (RedecodeConfig, name) for name in ("run", "output", "normalizer", "address", *DECODING)},
        "word_gap": (RedecodeConfig, "word_gap_s"),
    },
    finetune: {
        **{
            name: (TrainSettings, name)
            for name in (
                *("train", "valid", "output", "init", "steps", "accumulate", "learning_rate", "warmup"),
                *("hold", "optimizer", "weight_decay", "clip_norm", "label_weight", "mel_steps", "freeze_features"),
                *(
                    "precision",
                    "valid_every",
                    "checkpoint_every",
                    "patience",
                    "save_dtype",
                    "threads",
                    "max_error_rate",
                    "allow_any_path",
                ),
            )
        },
        "model_config": (TrainSettings, "config"),
        "batch_seconds": (DataSettings, "batch_s"),
        "join": (DataSettings, "join_max"),
        "augment": (DataSettings, "augment"),
        "seed": (DataSettings, "seed"),
        "stop_after": (TrainSettings, "stop_after_s"),
    },
    evaluate: SCORING,
    report: {
        **SCORING,
        "cost_per_hour": (Cost, "per_hour"),
        "currency": (Cost, "currency"),
        "audio": (ReportSettings, "audio"),
    },
    compare: {name: field for name, field in SCORING.items() if name not in ("by", "calibration")},
}
# Options that set no field: how a verb starts, ends or reports.
OTHERS = {
    transcribe: {"errors_ok", "new_run", "overwrite", "update", "log", "grace", "prediction"},
    redecode: {"errors_ok", "new_run", "overwrite", "log", "grace"},
    finetune: {"workers", "gpu", "address", "errors_ok"},
    evaluate: {"run", "fail_if", "address"},
    report: {"run", "baseline", "output", "corpus", "fail_if"},
    compare: {"run", "baseline", "examples", "fail_if"},
}
# Fields that no option sets on its own: two are set by an option with another field, the others from Python only.
WITHOUT_OPTION = {
    RunConfig: {"min_actors", "existing"},  # --actors MIN:MAX; --new-run, --overwrite, --update
    RedecodeConfig: {"existing"},
    TrainSettings: {"data", "prefetch", "init_commit"},
    DataSettings: {"join_below_s", "join_total_s"},  # --join MAX:SECONDS
    EvaluationSettings: {"scoring", "num_worst"},
}
# Options whose value is text that a verb parses: what it makes of the default.
PARSED = {(finetune, "join"): int}
# The defaults that differ, and why.
DIFFERENT = {
    (finetune, "augment"),  # the command augments unless told not to; Python code names what it wants
    (evaluate, "normalizer"),  # without the option, the run's own rules, which a `Scoring` has to name
    (report, "normalizer"),
    (compare, "normalizer"),
    (report, "cost_per_hour"),  # without the option there is no `Cost`
}


def options(verb) -> dict[str, Any]:
    """The default of each option and argument of a verb, as its command has it; None: there is none."""
    app = typer.Typer(add_completion=False)
    app.command()(verb)
    return {parameter.name: parameter.default for parameter in typer.main.get_command(app).params if parameter.name}


CASES = [(verb, option) for verb, fields in SET_BY.items() for option in fields if (verb, option) not in DIFFERENT]


@pytest.mark.parametrize(("verb", "option"), CASES, ids=[f"{verb.__name__}-{option}" for verb, option in CASES])
def test_an_option_has_the_default_of_the_field_that_it_sets(verb, option):
    settings, name = SET_BY[verb][option]
    [field] = [field for field in dataclasses.fields(settings) if field.name == name]
    required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    parameter = inspect.signature(verb).parameters[option]
    assert required == (parameter.default is parameter.empty)
    if not required:
        default = PARSED.get((verb, option), lambda value: value)(options(verb)[option])
        expected = field.default if field.default is not dataclasses.MISSING else field.default_factory()
        # An option that is repeated or a list has no value where the field is empty.
        assert default == expected or (not default and not expected and default in (None, (), []))


@pytest.mark.parametrize("verb", SET_BY, ids=lambda verb: verb.__name__)
def test_every_option_sets_a_field_or_is_known_not_to(verb):
    named = set(options(verb))
    assert named == set(SET_BY[verb]) | OTHERS[verb]
    assert not set(SET_BY[verb]) & OTHERS[verb]


@pytest.mark.parametrize("settings", WITHOUT_OPTION, ids=lambda settings: settings.__name__)
def test_every_field_has_an_option_or_is_known_not_to(settings):
    fields = {field.name for field in dataclasses.fields(settings)}
    with_option = {name for verb in SET_BY.values() for kind, name in verb.values() if kind is settings}
    assert fields == with_option | WITHOUT_OPTION[settings]
    assert not with_option & WITHOUT_OPTION[settings]


@pytest.mark.parametrize(
    ("verb", "settings", "names"),
    [(transcribe, RunConfig, RUN_OPTIONS), (finetune, TrainSettings, TRAIN_OPTIONS)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_errors_name_options_that_exist(verb, settings, names):
    known = {name.replace("_", "-") for name in options(verb)}
    fields = {name for kind, name in SET_BY[verb].values() if kind in (settings, DataSettings)}
    assert {names.get(name, name.replace("_", "-")) for name in fields} <= known
    assert set(names.values()) <= known


def test_the_defaults_of_the_ray_options_are_those_of_the_placement():
    pytest.importorskip("ray.train")
    from pipeline.training.settings import Placement

    given = options(finetune)
    assert (given["workers"], given["gpu"], given["address"]) == (
        default_of(Placement, "workers"),
        default_of(Placement, "gpus"),
        default_of(Placement, "address"),
    )


@pytest.mark.parametrize("init", [None, "bundled"])
def test_the_augmentations_that_the_command_names_exist(init):
    chosen = parse_augmentations(default_augment(init))
    assert chosen
    assert all(0 < probability < 1 for probability in chosen.values())


def test_a_default_is_read_from_its_field():
    assert default_of(RunConfig, "chunk_s") == 1200.0
    with pytest.raises(KeyError):
        default_of(RunConfig, "output")
    with pytest.raises(KeyError):
        default_of(RunConfig, "no_such_field")
