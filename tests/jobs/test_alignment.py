"""`sewd align`, `segment` and `search` on real speech with the bundled model, from audio to utterances and back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.command import sewd_in_process

DEMO = Path(__file__).parents[2] / "jobs" / "demo_corpus"


@pytest.mark.usefixtures("local_ray")
def test_audio_and_its_texts_become_words_utterances_and_hits(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    (corpus / "audio").mkdir(parents=True)
    rows = [json.loads(line) for line in (DEMO / "manifest.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "offset" not in row and "cut-off" not in row["audio_filepath"] and "text" in row]
    texts = {Path(row["audio_filepath"]).stem: row["text"] for row in rows}
    for row in rows:
        shutil.copy(DEMO / row["audio_filepath"], corpus / "audio")
    (corpus / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))

    done = sewd_in_process("align", corpus / "manifest.jsonl", "--output", tmp_path / "words.parquet")
    assert done.returncode == 0, done.stderr
    found = {Path(row["uri"]).stem: row for row in pq.read_table(tmp_path / "words.parquet").to_pylist()}
    assert found.keys() == texts.keys()
    for name, row in found.items():
        assert [word["word"] for word in row["words"]] == texts[name].split()
        assert row["missing_words"] == 0
        assert row["score"] > 0.5
        times = [time for word in row["words"] for time in (word["start_s"], word["end_s"])]
        assert times == sorted(times)

    # The run that was made is used again, without the model: texts that were exchanged are found.
    names = sorted(texts)
    wrong = dict(zip(names, [texts[name] for name in (*names[1:], names[0])], strict=True))
    (tmp_path / "texts").mkdir()
    for name, text in wrong.items():
        (tmp_path / "texts" / f"{name}.txt").write_text(text)
    again = sewd_in_process("align", tmp_path / "words.run", "--text", tmp_path / "texts", "-o", tmp_path / "w.parquet")
    assert again.returncode in (0, 3), again.stderr
    assert all((row["score"] or 0.0) < 0.1 for row in pq.read_table(tmp_path / "w.parquet").to_pylist())

    cut = sewd_in_process("segment", tmp_path / "words.run", "--output", tmp_path / "cut.jsonl", "--max", 8)
    assert cut.returncode == 0, cut.stderr
    utterances = [json.loads(line) for line in (tmp_path / "cut.jsonl").read_text().splitlines()]
    for name, text in texts.items():
        own = [row["text"] for row in utterances if Path(row["audio_filepath"]).stem == name]
        assert " ".join(own) == text
    assert len(utterances) > len(texts)

    hits = sewd_in_process("search", tmp_path / "words.run", "milk", "--output", tmp_path / "hits.parquet")
    assert hits.returncode == 0, hits.stderr
    said = sorted(name for name, text in texts.items() for word in text.split() if word == "milk")
    assert sorted(Path(row["uri"]).stem for row in pq.read_table(tmp_path / "hits.parquet").to_pylist()) == said
