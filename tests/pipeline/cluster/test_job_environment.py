"""Variables of a job: names travel, values of secrets never do."""

from __future__ import annotations

import pytest

from pipeline.cluster.job_environment import REQUIRED_VARIABLE, check_arguments, check_environment, job_variables
from pipeline.errors import UsageError


def test_settings_are_sent_and_names_asked_for():
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
def test_what_is_named_like_a_secret_is_refused_without_its_value(name):
    with pytest.raises(UsageError, match=name) as refused:
        job_variables([f"{name}=hush"], [])
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize("setting", ["NAME", "=x", "1A=x", "A B=x", ""])
def test_what_is_no_setting_is_refused(setting):
    with pytest.raises(UsageError, match="NAME=VALUE"):
        job_variables([setting], [])


def test_a_value_given_with_a_name_is_refused_and_not_repeated():
    with pytest.raises(UsageError, match="values are never sent") as refused:
        job_variables([], ["AWS_SECRET_ACCESS_KEY=hush"])
    assert "hush" not in str(refused.value)


def test_in_a_job_what_is_missing_is_named(monkeypatch):
    check_environment()
    monkeypatch.setenv(REQUIRED_VARIABLE, "THERE,GONE,EMPTY")
    monkeypatch.setenv("THERE", "x")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("GONE", raising=False)
    with pytest.raises(UsageError, match="lacks GONE, EMPTY:"):
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
def test_values_that_look_like_secrets_are_refused_wherever_they_stand(value):
    for attempt in (lambda: job_variables([f"PLAIN={value}"], []), lambda: check_arguments(["transcribe", value])):
        with pytest.raises(UsageError, match="can read what a job is submitted with") as refused:
            attempt()
        assert "hush" not in str(refused.value)


def test_plain_arguments_pass():
    check_arguments(
        ["transcribe", "s3://bucket/a@b:c/", "https://host:8080/x?y=1", "--output", "s3://r", "-n", "a:b@c"]
    )
