"""Data sets for training: read back by the toolkits that they are for, and by the readers of this project."""

from __future__ import annotations

import io
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from pipeline.audio.decode import AudioSettings
from pipeline.audio.samples import to_float32
from pipeline.corpus.parts import Part, plan_table
from pipeline.corpus.plan import plan
from pipeline.corpus.read import read_part
from pipeline.errors import UsageError
from pipeline.export import manifests
from pipeline.export.export import ExportSettings, export
from pipeline.runs.run import write_plan
from pipeline.scoring.normalize import normalize
from pipeline.stages.rows import RowSettings, utterance_rows
from pipeline.storage import objects
from pipeline.training.sources import read_set
from tests.support.corpora import noise_bursts
from tests.support.inputs import tar
from tests.support.runs import transcripts, write_run
from tests.support.s3 import make_bucket, moto_server

CUT, REFERENCE = "cut", "reference"


def read(uri, channels="mix", max_segment_s=2.0):
    """The rows of an INPUT with the parts that they were read from, as a run reads them."""
    settings = RowSettings(AudioSettings(channels=channels, max_segment_s=max_segment_s), min_samples=1)
    for part in map(Part.from_row, plan([str(uri)], 1 << 30).to_pylist()):
        for utterance in read_part(part):
            for row in utterance_rows(utterance, settings):
                assert row.error is None, row.error
                yield part, row


def run_of(path, *inputs, channels="mix"):
    """A run over inputs, in which each utterance says its own id; and what the model would have heard."""
    found = [item for uri in inputs for item in read(uri, channels)]
    rows = [
        {
            "utt_id": row.utt_id,
            "uri": row.uri,
            "start_s": row.start_s,
            "duration_s": row.duration_s,
            "channel": row.channel,
            "text": text(row.utt_id),
            "speaker": "Anna Berg" if "talk" in row.utt_id else None,
            "part_id": part.part_id,
        }
        for part, row in found
    ]
    run = write_run(path, transcripts(rows), chunk_rows=3)
    write_plan(run.uri, plan_table(list({part.part_id: part for part, _ in found}.values())))
    changes = {
        "config": {**run.record.config, "channels": channels},
        "fingerprint": {**run.record.fingerprint, "word_gap_s": 0.5},  # not of version 0.1.0, which had other ids
    }
    return run.with_changes(**changes), {row.utt_id: to_float32(row.samples) for _, row in found}


def text(utt_id):
    return f"said in {utt_id}".replace("#", " ")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Files: one that is cut into segments, one of two channels at another rate, and odd names."""
    folder = tmp_path_factory.mktemp("corpus")
    files = {"talk.wav": (7.3, 16_000), "a b/c.d é.flac": (1.0, 16_000), "short.wav": (0.5, 8_000)}
    for seed, (name, (seconds, rate)) in enumerate(files.items()):
        (folder / name).parent.mkdir(exist_ok=True)
        soundfile.write(folder / name, noise_bursts(seconds, seed, rate), rate)
    both = np.stack([noise_bursts(1.5, 8, 44_100), noise_bursts(1.5, 9, 44_100)], 1)
    soundfile.write(folder / "both.wav", both, 44_100)
    return folder


@pytest.fixture(scope="module")
def mixed(corpus, tmp_path_factory):
    return run_of(tmp_path_factory.mktemp("runs") / "run", corpus)


@pytest.fixture(scope="module")
def split(corpus, tmp_path_factory):
    return run_of(tmp_path_factory.mktemp("runs") / "run", corpus, channels="split")


@pytest.fixture(scope="module")
def shards(corpus, tmp_path_factory):
    """The same recordings in a tar shard and a Parquet file."""
    folder = tmp_path_factory.mktemp("shards")
    names = ["talk.wav", "both.wav"]
    tar(folder / "s.tar", *[(f"in-tar-{name}", (corpus / name).read_bytes()) for name in names])
    audio = [{"audio": {"bytes": (corpus / name).read_bytes(), "path": f"in-parquet-{name}"}} for name in names]
    pq.write_table(pa.Table.from_pylist(audio), folder / "p.parquet")
    return run_of(folder / "run", folder / "s.tar", folder / "p.parquet")


def exported(run, folder, kind, audio=None, **settings):
    done = export(run, ExportSettings(format=kind, audio=audio, **settings), str(folder / kind))
    assert not done.left_out
    return folder / kind


def heard_again(uri):
    """What the readers of this project read of an export: (samples, text) by id."""
    return {row.utt_id: (to_float32(row.samples), row.reference) for _, row in read(uri, max_segment_s=60.0)}


def assert_equal(found, heard, name=lambda utt_id: utt_id, tolerance=0.6 / 32768):
    assert found.keys() == {name(utt_id) for utt_id in heard}
    for utt_id, samples in heard.items():
        again, said = found[name(utt_id)]
        assert said == text(utt_id)
        assert len(again) == len(samples)
        assert np.abs(again - samples).max() <= tolerance


ENTRY = {"nemo": "manifest.jsonl", "kaldi": "wav.scp", "lhotse": "cuts.jsonl.gz", "webdataset": "", "datasets": ""}


@pytest.mark.parametrize("kind", [*manifests.NAMED, *manifests.HOLDING])
def test_audio_that_is_cut_out_is_what_the_model_heard(mixed, kind, tmp_path):
    run, heard = mixed
    folder = exported(run, tmp_path, kind, CUT)
    safe = (lambda utt_id: utt_id.replace(" ", "%20")) if kind == "kaldi" else (lambda utt_id: utt_id)
    assert_equal(heard_again(folder / ENTRY[kind]), heard, safe)
    for_training = read_set("train", [(str(folder / ENTRY[kind]), 1.0)])
    assert {clip.utt_id: clip.text for clip in for_training.store.clips} == {
        safe(utt_id): normalize(text(utt_id), "basic") for utt_id in heard
    }


@pytest.mark.parametrize("kind", manifests.NAMED)
def test_audio_that_is_named_is_read_at_the_same_place(mixed, kind, tmp_path):
    run, heard = mixed
    folder = exported(run, tmp_path, kind)
    safe = (lambda utt_id: utt_id.replace(" ", "%20")) if kind == "kaldi" else (lambda utt_id: utt_id)
    # a piece of a file at another rate is not resampled with what is around it
    assert_equal(heard_again(folder / ENTRY[kind]), heard, safe, tolerance=1e-6)


@pytest.mark.parametrize("kind", [*manifests.NAMED, *manifests.HOLDING])
def test_utterances_of_shards_are_cut_out_and_cannot_be_named(shards, kind, tmp_path):
    run, heard = shards
    assert_equal(heard_again(exported(run, tmp_path, kind, CUT) / ENTRY[kind]), heard)
    if kind in manifests.NAMED:
        with pytest.raises(UsageError, match="is a shard"):
            exported(run, tmp_path / "named", kind)
        assert not (tmp_path / "named").exists()


@pytest.mark.parametrize("kind", ["nemo", "kaldi"])
def test_the_channel_of_an_object_that_has_one_is_named(corpus, kind, tmp_path):
    run, heard = run_of(tmp_path / "run", corpus / "talk.wav", channels="split")
    folder = exported(run, tmp_path, kind, REFERENCE)
    assert_equal(heard_again(folder / ENTRY[kind]), heard)


def test_channels_are_cut_out_or_named_where_the_format_can(split, tmp_path):
    run, heard = split
    assert {"both#c0", "both#c1"} <= heard.keys()
    assert_equal(heard_again(exported(run, tmp_path, "nemo", CUT) / ENTRY["nemo"]), heard)
    assert_equal(heard_again(exported(run, tmp_path, "lhotse") / ENTRY["lhotse"]), heard, tolerance=1e-6)
    for kind in ("nemo", "kaldi"):
        with pytest.raises(UsageError, match=r"one channel of .*--audio cut"):
            exported(run, tmp_path / "named", kind)


@pytest.mark.parametrize("audio", [CUT, REFERENCE])
def test_lhotse_reads_its_cuts(split, mixed, audio, tmp_path):
    lhotse = pytest.importorskip("lhotse")
    for name, (run, heard) in {"split": split, "mixed": mixed}.items():
        cuts = lhotse.CutSet.from_file(exported(run, tmp_path / name, "lhotse", audio) / "cuts.jsonl.gz")
        lhotse.qa.validate(cuts)
        found = {cut.id: cut for cut in cuts}
        assert found.keys() == heard.keys()
        for utt_id, cut in found.items():
            assert [one.text for one in cut.supervisions] == [text(utt_id)]
            assert cut.supervisions[0].speaker == ("Anna Berg" if "talk" in utt_id else None)
            assert cut.duration == pytest.approx(len(heard[utt_id]) / 16_000, abs=1e-4)
            samples = cut.load_audio().mean(axis=0)
            if cut.sampling_rate == 16_000:
                assert np.abs(samples - heard[utt_id]).max() <= 0.6 / 32768


def test_webdataset_reads_its_shards(mixed, tmp_path, monkeypatch):
    webdataset = pytest.importorskip("webdataset")
    monkeypatch.setattr(manifests, "SHARD_BYTES", 60_000)
    run, heard = mixed
    shards = sorted(map(str, exported(run, tmp_path, "webdataset").glob("*.tar")))
    assert len(shards) > 2
    found = {}
    for sample in webdataset.WebDataset(shards, shardshuffle=False):
        values = json.loads(sample["json"])
        assert values["text"].encode() == sample["txt"]
        found[values["utt_id"]] = (soundfile.read(io.BytesIO(sample["flac"]), dtype="float32")[0], values["text"])
    assert_equal(found, heard)


def test_datasets_loads_its_files(mixed, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(manifests, "SHARD_BYTES", 60_000)
    monkeypatch.setattr(manifests, "_ROWS", 2)
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    run, heard = mixed
    folder = exported(run, tmp_path, "datasets")
    assert len(list(folder.iterdir())) > 2
    loaded = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert isinstance(loaded.features["audio"], datasets.Audio)
    assert loaded.features["audio"].sampling_rate == 16_000
    loaded = loaded.cast_column("audio", datasets.Audio(decode=False))  # decoding needs torchcodec
    found = {
        row["utt_id"]: (soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32")[0], row["text"])
        for row in loaded
    }
    assert_equal(found, heard)


def test_kaldi_s_files_are_sorted_and_agree(mixed, tmp_path, monkeypatch):
    monkeypatch.setattr(manifests, "_SORTED_LINES", 3)
    run, heard = mixed
    folder = exported(run, tmp_path, "kaldi")
    files = {path.name: [line.split(" ", 1) for line in path.read_text().splitlines()] for path in folder.iterdir()}
    for lines in files.values():
        keys = [line[0].encode() for line in lines]
        assert keys == sorted(set(keys))
    names = {utt_id.replace(" ", "%20") for utt_id in heard}
    assert {line[0] for line in files["segments"]} == names == {line[0] for line in files["utt2spk"]}
    assert {line[1].split()[0] for line in files["segments"]} == {line[0] for line in files["wav.scp"]}
    talk = sorted(name for name in names if name.startswith("talk"))
    assert ["Anna%20Berg", " ".join(talk)] in files["spk2utt"]
    assert [name for name in names if name.startswith("short")] == ["short"]


def test_what_is_gone_or_has_changed_is_counted_and_a_condition_is_kept(corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "corpus")
    run, heard = run_of(tmp_path / "run", tmp_path / "corpus")
    (tmp_path / "corpus" / "short.wav").unlink()
    soundfile.write(tmp_path / "corpus" / "both.wav", noise_bursts(3.0, 1), 16_000)
    for kind, audio in (("nemo", CUT), ("webdataset", None)):
        done = export(run, ExportSettings(format=kind, audio=audio), str(tmp_path / kind))
        assert done.left_out == {"MISSING": 1, "changed since they were transcribed": 1}
        assert done.utterances == len(heard) - 2
        assert len(heard_again(tmp_path / kind / ENTRY[kind])) == len(heard) - 2
    where = "duration_s < 1.2 and not utt_id like 'short%'"
    export(run, ExportSettings(format="nemo", where=where), str(tmp_path / "some"))
    assert set(heard_again(tmp_path / "some" / "manifest.jsonl")) == {
        utt_id for utt_id, samples in heard.items() if len(samples) < 1.2 * 16_000 and utt_id != "short"
    }


def test_audio_is_refused_where_there_is_none_to_choose():
    for kind, audio in (("srt", CUT), ("webdataset", REFERENCE), ("datasets", REFERENCE)):
        with pytest.raises(UsageError, match="audio"):
            ExportSettings(format=kind, audio=audio)


def test_an_export_goes_to_a_store_and_is_read_from_there(mixed, tmp_path):
    run, heard = mixed
    with moto_server():
        bucket = make_bucket("exports")
        for kind, audio in (("webdataset", None), ("kaldi", CUT), ("srt", None)):
            settings = ExportSettings(format=kind, audio=audio)
            done = export(run, settings, f"{bucket}/{kind}")
            assert done.files == len(objects.list_objects(f"{bucket}/{kind}"))
            with pytest.raises(UsageError, match="not empty"):
                export(run, settings, f"{bucket}/{kind}")
        assert_equal(heard_again(f"{bucket}/webdataset"), heard)
        assert_equal(heard_again(f"{bucket}/kaldi/wav.scp"), heard, lambda utt_id: utt_id.replace(" ", "%20"))
        export(run, ExportSettings(format="stm"), f"{bucket}/all.stm")
        export(run, ExportSettings(format="stm"), str(tmp_path / "all.stm"))
        assert objects.fetch(f"{bucket}/all.stm") == (tmp_path / "all.stm").read_bytes()
