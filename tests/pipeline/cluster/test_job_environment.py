"""Environment variables of a job: names of secrets are sent, values never."""

from __future__ import annotations

import pytest

from pipeline.cluster.job_environment import REQUIRED_VARIABLE, check_arguments, check_environment, job_variables
from pipeline.errors import UsageError


def test_settings_are_sent_with_their_values_and_required_variables_by_name():
    assert job_variables(["AWS_REGION=eu-west-1", "EMPTY=", "URL=a=b"], ["AWS_ACCESS_KEY_ID", "HF_TOKEN"]) == {
        "AWS_REGION": "eu-west-1",
        "EMPTY": "",
        "URL": "a=b",
        REQUIRED_VARIABLE: "AWS_ACCESS_KEY_ID,HF_TOKEN",
    }
    assert job_variables([], []) == {}


@pytest.mark.parametrize(
    "name",
    [
        "AWS_SECRET_ACCESS_KEY",
        "AWS_ACCESS_KEY_ID",
        "AWS_SESSION_TOKEN",
        "HF_TOKEN",
        "AZURE_STORAGE_SAS_TOKEN",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "DB_PASSWORD",
        "my_api_key",
        "AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_CONNECTION_STRING",
        "FSSPEC_S3",
        "DB_PASS",
        "MYSQL_PWD",
        "STRIPE_KEY",
    ],
)
def test_a_variable_named_like_a_secret_is_refused_and_its_value_is_not_repeated(name):
    with pytest.raises(UsageError, match=name) as refused:
        job_variables([f"{name}=hush"], [])
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize("setting", ["NAME", "=x", "1A=x", "A B=x", ""])
def test_a_setting_without_a_valid_name_and_value_is_refused(setting):
    with pytest.raises(UsageError, match="NAME=VALUE"):
        job_variables([setting], [])


def test_a_value_given_with_a_required_name_is_refused_and_not_repeated():
    with pytest.raises(UsageError, match="values are never sent") as refused:
        job_variables([], ["AWS_SECRET_ACCESS_KEY=hush"])
    assert "hush" not in str(refused.value)


def test_required_variables_that_are_not_set_in_the_job_are_named(monkeypatch):
    check_environment()
    monkeypatch.setenv(REQUIRED_VARIABLE, "SET,UNSET,EMPTY")
    monkeypatch.setenv("SET", "x")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("UNSET", raising=False)
    with pytest.raises(UsageError, match="lacks UNSET, EMPTY:"):
        check_environment()


@pytest.mark.parametrize(
    "value",
    [
        "http://user:hush@proxy:3128",
        "DefaultEndpointsProtocol=https;AccountKey=hush",
        "https://bucket.s3.amazonaws.com/a.wav?X-Amz-Signature=hush",
        "https://account.blob.core.windows.net/a.wav?sv=1&sig=hush",
    ],
)
def test_a_value_that_looks_like_a_secret_is_refused_in_settings_and_arguments(value):
    for check in (lambda: job_variables([f"PLAIN={value}"], []), lambda: check_arguments(["transcribe", value])):
        with pytest.raises(UsageError, match="can read what a job is submitted with") as refused:
            check()
        assert "hush" not in str(refused.value)


def test_arguments_without_secrets_pass():
    check_arguments(
        ["transcribe", "s3://bucket/a@b:c/", "https://host:8080/x?y=1", "--output", "s3://r", "-n", "a:b@c"]
    )
