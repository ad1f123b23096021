"""What keeping posteriors costs: bytes, time, and what beam search and alignment lose by them.

    python -m benchmarks.posteriors MANIFEST [--clips 150] [--rounds 5]

The bundled model, on the processor. Time is that of the processor for a chunk, from decoded samples to the bytes of its
Parquet files, with and without posteriors in turns. What is lost is measured against the log-probabilities of the
model: words of a beam search without a language model, which prunes as `sewd transcribe` does, and what Viterbi makes
of the references: scores, and frames of the tokens. Needs the extra `lm`.
"""

from __future__ import annotations

import difflib
import itertools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import typer
from ctc_beam_decoder import BeamSearchDecoder
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from pipeline.config import make_config
from pipeline.corpus.parts import Part
from pipeline.corpus.plan import plan
from pipeline.decoding.alphabet import Alphabet
from pipeline.decoding.beam import LEAST_TEXT, LEAST_TOKEN
from pipeline.decoding.settings import DEFAULT_BEAM, DecoderSettings
from pipeline.stages.heads import Heads, recognized_rows
from pipeline.stages.models import ModelInfo, load_model_info
from pipeline.stages.rows import RowSettings, part_steps, read_rows
from pipeline.stages.settings import HeadSettings
from pipeline.stages.steps import START
from pipeline.stages.texts import TextSettings, posteriors, transcripts
from pipeline.storage.parquet import encode_table
from sewd_model import FeatureExtractor, SEWDForCTC, greedy_path, load_engine
from sewd_model.files import BUNDLED
from sewd_model.forced_alignment import align
from sewd_model.posteriors import keep
from sewd_model.recognition import prepared


def main(
    manifest: Annotated[Path, typer.Argument(help="A corpus with references.")],
    clips: Annotated[int, typer.Option(help="Number of clips.")] = 150,
    rounds: Annotated[int, typer.Option(help="Number of rounds; a table shows their median.")] = 5,
) -> None:
    """Measure bytes, time and losses of kept posteriors."""
    torch.set_num_threads(1)
    info = load_model_info(make_config(inputs=(str(manifest),), output="unused"))
    rows = read_corpus(manifest, clips, info)
    hours = sum(rows.field("duration_s").to_pylist()) / 3600
    table = Table("measure", "value")
    for name, value in {**sizes_and_times(rows, info, rounds, hours), **losses(rows, info)}.items():
        table.add_row(name, value)
    Console().print(f"{len(rows)} clips, {hours:.2f} h", table)


def read_corpus(manifest: Path, clips: int, info: ModelInfo) -> pa.StructArray:
    """The first clips of a corpus, decoded: rows of `READ_ROW`."""
    parts = (Part.from_row(row) for row in plan([str(manifest)], 1 << 40, clips).to_pylist())
    settings = RowSettings(info.audio, info.min_samples)
    steps = (step for part in parts for step in part_steps(part, settings, START, {}))
    return read_rows([step.row for step in steps if step.row is not None], info.audio.sample_rate)


def sizes_and_times(rows: pa.StructArray, info: ModelInfo, rounds: int, hours: float) -> dict[str, str]:
    """Bytes of each column, and processor time of a chunk with and without posteriors."""
    texts = TextSettings(
        acoustics=info.acoustics,
        decoder=DecoderSettings(),
        word_gap_s=0.5,
        extend_words=True,
        normalizer="basic",
        classifiers=(),
    )
    heads = {kept: Heads(HeadSettings(BUNDLED, (), (), "cpu", "float32", 1, posteriors=kept)) for kept in (False, True)}
    seconds: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for kept in itertools.islice(itertools.cycle((False, True)), 2 * rounds):
        started = time.process_time()
        results = heads[kept].results(rows)
        model_s = time.process_time() - started
        recognized = recognized_rows(rows, results)
        table = pa.Table.from_struct_array(recognized)
        table = table.append_column("part_id", pa.array(["0" * 20] * len(table)))
        table = table.append_column("chunk", pa.array([0] * len(table), pa.int32()))
        encode_table(transcripts(table, texts))
        content = encode_table(posteriors(table)) if kept else b""
        seconds[kept].append((model_s, time.process_time() - started - model_s))
    model_s = median(model for model, _ in seconds[False])
    added_s = median(kept - plain for (_, kept), (_, plain) in zip(seconds[True], seconds[False], strict=True))
    return {
        **{f"kB an hour, {name}": f"{size / hours / 1000:.0f}" for name, size in column_bytes(content).items()},
        "kB an hour": f"{len(content) / hours / 1000:.0f}",
        "model, s": f"{model_s:.1f}",
        "rows of posteriors and their file, share of the model": f"{added_s / model_s:.1%}",
    }


def column_bytes(content: bytes) -> Mapping[str, int]:
    """The bytes of each column of a Parquet file that take a thousandth of it."""
    metadata = pq.read_metadata(pa.BufferReader(content))
    sizes: dict[str, int] = {}
    for group in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            column = metadata.row_group(group).column(index)
            name = column.path_in_schema.partition(".")[0]
            sizes[name] = sizes.get(name, 0) + column.total_compressed_size
    return {name: size for name, size in sizes.items() if size > len(content) / 1000}


def losses(rows: pa.StructArray, info: ModelInfo) -> dict[str, str]:
    """What is lost against the log-probabilities of the model, and the time of greedy decoding and of keeping."""
    acoustics = info.acoustics
    blank, tokenizer = acoustics.blank, acoustics.tokenizer
    engine = load_engine([SEWDForCTC.from_pretrained(BUNDLED).eval()], "cpu", "float32")
    features = FeatureExtractor.from_pretrained(BUNDLED)
    waves = [
        np.frombuffer(samples, kind)
        for samples, kind in zip(rows.field("samples").to_pylist(), rows.field("sample_type").to_pylist(), strict=True)
    ]
    started = time.process_time()
    logits = [output[0].numpy() for output in engine.encode([prepared(wave, features) for wave in waves]) if output]
    encoder_s = time.process_time() - started
    greedy, greedy_s = timed(lambda: [greedy_path(each, blank, tokenizer.drop_ids) for each in logits])
    kept, keep_s = timed(lambda: [keep(each, blank) for each in logits])
    full = [torch.log_softmax(torch.from_numpy(each), -1).numpy() for each in logits]
    dense = [each.log_probabilities(acoustics.num_tokens, blank) for each in kept]
    same = sum(
        np.array_equal(greedy_path(each, blank, tokenizer.drop_ids).token_ids, path.token_ids)
        for each, path in zip(dense, greedy, strict=True)
    )
    search = BeamSearchDecoder(list(Alphabet.of(acoustics, is_spelled=False).labels))
    before, after = ([searched(search, each) for each in scores] for scores in (full, dense))
    words = sum(map(len, before))
    differ = sum(itertools.starmap(differing, zip(before, after, strict=True)))
    references = [tokenizer.encode(text.upper()) for text in rows.field("reference").to_pylist()]
    scored = [
        (viterbi(whole, ids, blank), viterbi(part, ids, blank))
        for whole, part, ids in zip(full, dense, references, strict=True)
    ]
    errors = [(part[0] - whole[0]) / len(each) for (whole, part), each in zip(scored, full, strict=True)]
    moved = np.concatenate([np.abs(part[1] - whole[1]) for whole, part in scored])
    return {
        "greedy decoding, share of the encoder": f"{greedy_s / encoder_s:.1%}",
        "keeping instead of it, share of the encoder": f"{keep_s / encoder_s:.1%}",
        "clips with the greedy text of the model": f"{same} of {len(greedy)}",
        "words of a beam search that differ": f"{differ} of {words} ({differ / words:.2%})",
        "score of the references, nats a frame": f"{np.mean(errors):+.4f}, standard deviation {np.std(errors):.4f}",
        "tokens of the references that move": f"{(moved > 0).mean():.2%}; by over 40 ms {(moved > 2).mean():.2%}",
    }


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """The result of a call, and its processor time in seconds."""
    started = time.process_time()
    result = call()
    return result, time.process_time() - started


def searched(search: BeamSearchDecoder, scores: NDArray[np.float32]) -> list[str]:
    """The words of a beam search."""
    beams = search.decode_beams(scores, beam_width=DEFAULT_BEAM, beam_prune_logp=LEAST_TEXT, token_min_logp=LEAST_TOKEN)
    words: list[str] = beams[0][0].split()
    return words


def differing(one: list[str], other: list[str]) -> int:
    """Words of the longer text that the other does not have in their place."""
    blocks = difflib.SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks()
    return max(len(one), len(other)) - sum(block.size for block in blocks)


def viterbi(scores: NDArray[np.float32], token_ids: list[int], blank: int) -> tuple[float, NDArray[np.int64]]:
    """The score of the best path of a text, and the first frame of each of its tokens."""
    path = align(scores, token_ids, blank)
    states = np.full(len(scores), blank)
    for token, start, end in zip(path.token_ids, path.start_frames, path.end_frames, strict=True):
        states[start:end] = token
    return float(scores[np.arange(len(scores)), states].sum()), path.start_frames


if __name__ == "__main__":
    typer.run(main)
