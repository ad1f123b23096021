"""Transcribe a folder, look at the transcripts, and compute the word error rate.

python examples/python_api.py recordings/ run
"""

from __future__ import annotations

import sys

import pipeline


def main(audio: str, output: str) -> None:
    """Transcribe `audio` into the run `output` with the bundled model, or resume that run."""
    run = pipeline.transcribe(
        pipeline.RunConfig(inputs=(audio,), output=output),
        on_progress=lambda progress: print(f"{progress.share:4.0%}", file=sys.stderr),
    )
    for row in run.dataset("transcripts").to_table(columns=["utt_id", "text", "confidence"]).to_pylist():
        print(f"{row['utt_id']}: {row['text']!r} ({row['confidence'] or 0:.2f})")
    for row in run.dataset("errors").to_table(columns=["utt_id", "code", "message"]).to_pylist():
        print(f"{row['utt_id']}: {row['code']}, {row['message']}")
    evaluation = pipeline.evaluate_run(run)
    if evaluation.wer is not None:
        print(f"word error rate {evaluation.wer:.1%} over {evaluation.coverage:.0%} of the utterances")


if __name__ == "__main__":
    main(*sys.argv[1:])
