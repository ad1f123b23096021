"""`sewd demo` (`make demo`): transcribe, evaluate and report on seven minutes of speech with the bundled model.

The corpus is in the folder `demo_corpus` (made by `benchmarks/bundled/demo_corpus.py`): four synthetic voices that the
model was not trained on, in shards and files of several formats, rates and lengths, two of them broken on purpose.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.console import Exit, out, single
from jobs.evaluate import evaluate
from jobs.report import report
from jobs.transcribe import transcribe
from sewd_model.files import BUNDLED

CORPUS = Path(__file__).with_name("demo_corpus")
TASK = f"keyword={BUNDLED}"


def demo(
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="RUN", help="Directory to write the run to.")
    ] = "demo-run",
) -> int:
    """Transcribe, label, evaluate and report on a small corpus with the bundled model."""
    inputs = [str(CORPUS / "shards"), str(CORPUS / "manifest.jsonl")]
    command = f"sewd transcribe {' '.join(inputs)} --output {output} --model {BUNDLED} --classifier {TASK}"
    out.print(f"$ {command}", style="bold", markup=False, soft_wrap=True)
    code = transcribe(inputs=inputs, output=output, model=BUNDLED, classifier=[TASK])
    if code not in (Exit.DONE, Exit.DONE_WITH_ERRORS):
        return code
    out.print("(two files are broken on purpose: see errors/)")
    out.print(f"\n$ sewd evaluate {output}", style="bold", markup=False)
    evaluate(output)
    out.print(f"\n$ sewd report {output}", style="bold", markup=False)
    report(output)
    out.print(f"\ntranscripts:  {output}/transcripts/*.parquet")
    out.print(f"labels:       {output}/labels/*.parquet")
    out.print(f"failed files: {output}/errors/*.parquet")
    out.print(f"record:       {output}/run.json")
    return Exit.DONE


if __name__ == "__main__":
    single(demo)
