"""Options from a file: the command line wins, a mistake is one line, and what is printed reads back to the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs import main, submit
from jobs.config_file import as_yaml
from jobs.verbs import WITH_CONFIG, application
from pipeline.errors import UsageError

REQUIRED = {
    "transcribe": ["in put", "--output", "run"],
    "watch": ["input", "--output", "run"],
    "evaluate": ["run"],
    "compare": ["run", "baseline"],
    "report": ["run"],
    "redecode": ["run", "--output", "other"],
    "finetune": ["--train", "a", "--train", "2=b", "--output", "run"],
}


def context(verb: str, *arguments: object) -> typer.Context:
    return typer.main.get_command(application([verb])).make_context(verb, [str(a) for a in arguments])


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("verb", WITH_CONFIG)
def test_the_printed_options_of_each_verb_read_back_to_the_same(verb, tmp_path):
    made = context(verb, *REQUIRED[verb])
    file = written(tmp_path / "a.yaml", as_yaml(made))
    assert context(verb, "--config", file).params == made.params


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=12)
OPTIONS = {
    "model": TEXT,
    "actors": st.sampled_from(["2", "2:8", "1:60", "0x10", "1_0", "1e3", "null", "true", "~", "no", "2020-01-01"]),
    "max-segment": st.floats(1, 600),
    "max-error-rate": st.floats(0, 1),
    "limit": st.integers(1, 10**12),
    "classifier": st.lists(TEXT, max_size=3),
    "strict": st.booleans(),
    "skip-silence": st.booleans(),
    "log": TEXT,
}


@settings(max_examples=60, deadline=None)
@given(st.fixed_dictionaries({}, optional=OPTIONS), st.lists(TEXT, min_size=1, max_size=3))
def test_any_options_read_back_to_the_same(tmp_path_factory, options, inputs):
    folder = tmp_path_factory.mktemp("config")
    arguments = []
    for key, value in options.items():
        if isinstance(value, bool):
            arguments += [f"--{key}"] if value else [f"--no-{key}"] if key == "skip-silence" else []
        else:
            arguments += [f"--{key}={item}" for item in (value if isinstance(value, list) else [value])]
    made = context("transcribe", *arguments, "--output=o", "--", *inputs)
    file = written(folder / "a.yaml", as_yaml(made))
    assert context("transcribe", "--config", file).params == made.params


def test_the_command_line_wins(tmp_path):
    file = written(tmp_path / "a.yaml", "inputs: [a, b]\noutput: run\nlimit: 3\nskip-silence: false\nclassifier: x\n")
    plain = context("transcribe", "--config", file).params
    assert (plain["inputs"], plain["limit"], plain["skip_silence"], plain["classifier"]) == (
        ["a", "b"],
        3,
        False,
        ["x"],
    )
    over = context("transcribe", "c", "--limit", 5, "--skip-silence", "--classifier", "y", "--config", file).params
    assert (over["inputs"], over["limit"], over["skip_silence"], over["classifier"]) == (["c"], 5, True, ["y"])
    assert over["output"] == "run"


def test_a_range_is_no_number_of_yaml(tmp_path):
    file = written(tmp_path / "a.yaml", "inputs: a\noutput: run\nactors: 2:8\n")
    assert context("transcribe", "--config", file).params["actors"] == "2:8"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("outptu: x", "a.yaml: outptu is no option: did you mean output"),
        ("chunk_seconds: 5", "a.yaml: chunk_seconds is no option: did you mean chunk-seconds"),
        ("qqq: 5", "a.yaml: qqq is no option: the keys are inputs, output"),
        ("config: b.yaml", "a.yaml: config is no option"),
        ("limit: ten", "a.yaml: limit: Input should be a valid integer"),
        ("limit: 1.5", "a.yaml: limit: Input should be a valid integer"),
        ("max-segment: true", "a.yaml: max-segment: True is not text or a number"),
        ("limit: [1, 2]", "a.yaml: limit: a list, but it has one value"),
        ("strict: maybe", "a.yaml: strict: 'maybe' is not true or false"),
        ("classifier: {a: b}", "a.yaml: classifier: a mapping is no value of it"),
        ("inputs: [[a]]", "a.yaml: inputs: a list in a list is no value of it"),
        ("inputs: [a, ~]", "a.yaml: inputs: None is neither text nor a number"),
        ("inputs: " + "[" * 3000 + "]" * 3000, "a.yaml: no YAML: maximum recursion depth"),
        ("limit: 1\nlimit: 2", "a.yaml: no YAML: limit is there twice"),
        ("a: b: c", "a.yaml: no YAML: mapping values are not allowed"),
        ("- limit", "a.yaml: not a mapping of options to values"),
        ("? [a]\n: b", "a.yaml: no YAML"),
        ("x: !!python/object:os.system {}", "a.yaml: no YAML: could not determine a constructor"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(tmp_path, text, message):
    file = written(tmp_path / "a.yaml", text)
    with pytest.raises(UsageError) as raised:
        context("transcribe", "in", "--output", "o", "--config", file)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
    for path in (tmp_path / "no.yaml", tmp_path):
        with pytest.raises(UsageError, match="config: cannot read"):
            context("transcribe", "in", "--output", "o", "--config", path)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UsageError, match="config: cannot read"):
        context("transcribe", "in", "--output", "o", "--config", tmp_path / "b.yaml")


def test_credentials_in_uris_are_not_printed():
    made = context("transcribe", "https://user:secret@host/a.wav", "--output", "s3://key:secret@bucket/run")
    assert "secret" not in as_yaml(made)
    assert yaml.safe_load(as_yaml(made))["output"] == "s3://bucket/run"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("inputs: URI", "inputs: it looks like a secret"),
        ("strict: URI", "strict: it looks like a secret"),
        ("inputs: [[URI]]", "inputs: a list"),
        ('"URI": 1', "is no option"),
        ("inputs: [URI", "no YAML"),
    ],
)
def test_a_secret_in_the_file_is_refused_and_not_shown(tmp_path, text, message):
    file = written(tmp_path / "a.yaml", text.replace("URI", "s3://key:hunter22@bucket/a"))
    with pytest.raises(UsageError, match=message) as raised:
        context("transcribe", "--config", file)
    assert "hunter22" not in str(raised.value)


def test_a_submitted_command_does_not_name_a_file_of_this_machine(tmp_path):
    text = (
        "inputs: [s3://b/a, s3://b/c]\noutput: s3://b/run\nactors: 2:8\nskip-silence: false\nstrict: true\nlimit: 3\n"
    )
    file = written(tmp_path / "a.yaml", text)
    for given_as in (["--config", str(file)], [f"--config={file}"]):
        verb, *arguments = submit.checked(["transcribe", *given_as, "--limit", "7"])
        assert not any("config" in argument for argument in arguments)
        sent, here = context(verb, *arguments).params, context("transcribe", *given_as, "--limit", "7").params
        assert sent == here | {"address": "auto"}


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("", ["--address", "auto", "in", "--output", "o"]),  # the job has no such file
        ("limit: ~", ["--address", "auto", "in", "--output", "o"]),
        ("address: local", ["--address", "auto", "in", "--output", "o"]),  # as --print-config writes it
        ("address: h:6379", ["--address=h:6379", "in", "--output", "o"]),
    ],
)
def test_what_a_file_leaves_open_is_chosen_for_the_cluster(tmp_path, text, sent):
    file = written(tmp_path / "a.yaml", text)
    assert submit.checked(["transcribe", "in", "--config", str(file), "--output", "o"]) == ["transcribe", *sent]


def test_an_address_of_the_file_that_is_no_default_is_kept(tmp_path):
    file = written(tmp_path / "a.yaml", "address: local")
    assert submit.checked(["evaluate", "run", "--config", str(file)]) == ["evaluate", "--address=local", "run"]


def test_an_argument_of_the_file_is_never_an_option_of_the_job(tmp_path):
    file = written(tmp_path / "a.yaml", "run: -first\nbaseline: second\n")
    verb, *arguments = submit.checked(["compare", "--config", str(file)])
    assert context(verb, *arguments).params == context("compare", "--config", file).params


COMPLETE = """
import os, sys
import jobs.main
try:
    jobs.main.main()
finally:
    print("torch" in sys.modules, "ray" in sys.modules, "pipeline" in sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("words", "found", "imports"),
    [
        ("sewd tra", ["transcribe"], "False False False"),
        ("sewd evaluate --coll", ["--collar"], "False False True"),
        ("sewd finetune --model", ["--model-config"], "False False True"),
    ],
)
def test_shells_complete_verbs_and_options_without_importing_the_rest(words, found, imports):
    variables = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1), "_SEWD_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [sys.executable, "-c", COMPLETE], env=os.environ | variables, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == found
    assert done.stderr.strip() == imports


def test_a_verb_prints_its_options_and_does_nothing_else(tmp_path, capsys, monkeypatch):
    file = written(tmp_path / "a.yaml", f"inputs: {tmp_path}\noutput: {tmp_path}/run\nlimit: 3\n")
    monkeypatch.setattr(sys, "argv", ["sewd", "transcribe", "--config", str(file), "--print-config"])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["limit"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["a.yaml"]


def test_a_verb_runs_with_the_options_of_its_file(tmp_path, capsys, monkeypatch):
    file = written(tmp_path / "a.yaml", f"run: {tmp_path}/no-run\n")
    monkeypatch.setattr(sys, "argv", ["sewd", "evaluate", "--config", str(file)])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 2
    assert f"no run at {tmp_path}/no-run" in capsys.readouterr().err.replace("\n", "")


def test_a_file_to_fill_in_needs_no_arguments(tmp_path):
    for verb, missing in (("transcribe", ["inputs", "output"]), ("compare", ["run", "baseline"])):
        values = yaml.safe_load(as_yaml(context(verb, "--print-config")))
        assert [key for key in missing if values[key]] == []
        file = written(tmp_path / f"{verb}.yaml", as_yaml(context(verb, "--print-config")))
        with pytest.raises(typer.TyperException, match="Missing"):
            context(verb, "--config", file)


def test_the_documented_file_is_one(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "running.md").read_text(encoding="utf-8")
    file = written(tmp_path / "a.yaml", text.partition("```yaml\n")[2].partition("```")[0])
    taken = context("transcribe", "--config", file).params
    assert (len(taken["inputs"]), taken["actors"], taken["skip_silence"]) == (2, "2:8", False)
