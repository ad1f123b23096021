"""Secrets in URIs are refused where a run would keep them, and left out of messages."""

from __future__ import annotations

import logging

import pytest

from pipeline import RunConfig, RunFailedError, UsageError, transcribe
from pipeline.audio.decode import AudioSettings
from pipeline.config import make_config
from pipeline.errors import AudioError, ErrorCode, StorageError
from pipeline.prediction.recordings import row_settings, steps
from pipeline.secrets import has_secret, without_secrets
from pipeline.stages.rows import RowError
from pipeline.storage import retry
from tests.support.corpora import parts_of, write_manifest
from tests.support.without_ray import without_ray

HUSH = "hush0123456789hush0123456789hush012345"
SECRETS = [
    (f"https://user:{HUSH}@host/a.wav", "https://host/a.wav"),
    (f"ftp://:{HUSH}@host", "ftp://host"),
    (f"https://b/a.wav?X-Amz-Signature={HUSH}&x=1", "https://b/a.wav?X-Amz-Signature=...&x=1"),
    (f"https://a/a.wav?sv=1&sig={HUSH}", "https://a/a.wav?sv=1&sig=..."),
    (f"Endpoint=x;AccountKey={HUSH};y=1", "Endpoint=x;AccountKey=...;y=1"),
    (f"the token hf_{HUSH} is wrong", "the token ... is wrong"),
    (f"two: s3://k:{HUSH}@a and s3://k:{HUSH}@b", "two: s3://a and s3://b"),
]
PLAIN = ["s3://bucket/a@b:c/", "https://host:8080/x?y=1", "abfss://box@account.dfs.core.windows.net/a", "a:b@c"]


@pytest.mark.parametrize(("text", "shown"), SECRETS, ids=range(len(SECRETS)))
def test_a_secret_is_found_and_left_out(text, shown):
    assert has_secret(text)
    assert without_secrets(text) == shown


@pytest.mark.parametrize("text", [*PLAIN, "hf://ORG/NAME@main", "design=a", "/data/config=1.wav", "hf_short"])
def test_other_text_stays_as_it_is(text):
    assert not has_secret(text)
    assert without_secrets(text) == text


@pytest.mark.parametrize("field", ["inputs", "output", "model", "classifiers", "add_classifiers"])
def test_a_configuration_with_a_secret_is_refused_without_repeating_it(field):
    uri = f"ftp://user:{HUSH}@host/a"
    value = (uri,) if field in ("inputs", "classifiers", "add_classifiers") else uri
    with pytest.raises(UsageError, match="holds a secret") as refused:
        make_config(**{"inputs": (".",), "output": "run", field: value})
    assert HUSH not in str(refused.value)
    with pytest.raises(ValueError, match="holds a secret"):
        RunConfig(**{"inputs": (".",), "output": "run", field: value})


@pytest.mark.parametrize("error", [PermissionError, IsADirectoryError])
def test_messages_about_storage_do_not_have_the_secrets_of_a_uri(error, monkeypatch):
    monkeypatch.setattr(retry, "_sleep", lambda seconds: None)

    @retry.retried
    def read(uri):
        raise error(13, f"no: {uri}")

    with pytest.raises((StorageError, FileNotFoundError)) as raised:
        read(f"https://a/a.wav?sig={HUSH}")
    assert HUSH not in str(raised.value)


def test_an_error_row_does_not_repeat_the_secret_of_its_uri():
    error = AudioError(ErrorCode.MISSING, f"https://u:{HUSH}@host/a.wav is not there")
    assert RowError.of("read", error).message == "https://host/a.wav is not there"


def test_a_signed_address_of_a_manifest_is_in_no_message_log_or_prediction(tmp_path, small_ctc, caplog):
    signed = f"odd://host/a.wav?sig={HUSH}"
    manifest = write_manifest(tmp_path / "m.jsonl", [{"audio_filepath": signed}])
    config = RunConfig((str(manifest),), str(tmp_path / "run"), str(small_ctc), strict=True)
    caplog.set_level(logging.INFO, "sewd")
    with without_ray(), pytest.raises(RunFailedError, match=r"BAD_ROW odd://host/a\.wav\?sig=\.\.\.: ") as raised:
        transcribe(config)
    logged = [vars(record) for record in caplog.records]
    assert [record["uri"] for record in logged if "uri" in record] == ["odd://host/a.wav?sig=..."]
    *_, last = steps(parts_of(manifest), row_settings(AudioSettings()), False, False)
    assert last.row.failed == {"BAD_ROW": 1}
    assert HUSH not in f"{raised.value} {(tmp_path / 'run/run.json').read_text()} {logged} {last.row.to_json()}"
