"""`sewd status`: how far a run is, from its commits, its record and its lease. Needs no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.table import Table

from jobs.console import Exit, out, single, warn
from pipeline import Run
from pipeline.report.formats import duration
from pipeline.runs.compact import read_compaction
from pipeline.runs.damage import first_lost_file
from pipeline.runs.lease import is_lease_free
from pipeline.runs.ledger import read_ledger
from pipeline.runs.record import Addition, Attempt, RunRecord
from pipeline.runs.status import RunStatus
from pipeline.runs.totals import Totals
from pipeline.storage import uris


def status(run: Annotated[str, typer.Argument(metavar="RUN", help="Directory or prefix of the run.")]) -> int:
    """Show how far a run is: parts, chunks, rows, errors and audio."""
    opened = Run.open(run)
    check_objects(opened)
    totals = opened.totals()
    done = opened.parts_done()
    share = min(totals.source_bytes / max(opened.record.input_bytes, 1), 1.0)
    if opened.status == RunStatus.DONE:
        share = 1.0
    table = Table(show_header=False, box=None)
    rows = {
        "status": state(opened),
        "parts": f"{len(done)} of {opened.record.parts} done",
        "chunks": f"{totals.chunks} committed",
        "input": f"{share:.0%} of {opened.record.input_bytes / 2**20:,.1f} MiB",
        "transcripts": f"{totals.utterances:,}",
        "errors": f"{totals.errors:,}" + "".join(f"  {code} {count}" for code, count in totals.error_codes.items()),
        "audio": audio_of(totals).replace(" audio", "", 1),
        "model time" if opened.record.source is None else "decoding time": duration(totals.compute_s)
        + (f" ({totals.audio_s / totals.compute_s:.0f}x real time)" if totals.compute_s else ""),
        "starts": f"{len(opened.record.attempts)}, the first at {opened.record.created}",
    }
    if totals.engines:
        rows["computed by"] = "\n".join(f"{engine}: {count:,}" for engine, count in totals.engines.items())
    if (update := opened.record.last_update) is not None:
        counts = f"{update.added:,} added, {update.changed:,} changed, {update.removed:,} removed"
        rows["last update"] = f"{update.at}: {counts} ({update.number:,} in all)"
    if summary := last_start(opened.record.attempts):
        rows["last start"] = summary
    if compared := against_prediction(opened.record):
        rows["prediction"] = compared
    rows["decoding"] = opened.record.decoding
    if opened.record.source is not None:
        rows["decoded from"] = opened.record.source
    if opened.record.classifier_digests:
        rows["classifiers"] = ", ".join(opened.record.classifier_digests)
    if (adding := opened.record.adding) is not None:
        rows["adding"] = describe_addition(opened, adding)
    for name, value in rows.items():
        table.add_row(name, value)
    out.print(table)
    warn(totals.warnings)
    return Exit.DONE


def audio_of(totals: Totals) -> str:
    """The audio of a run, and how much of it was skipped as silence."""
    skipped = f" ({duration(totals.skipped_s)} of silence skipped)" if totals.skipped_s else ""
    return f"{duration(totals.audio_s)} audio{skipped}"


def check_objects(run: Run) -> None:
    """Check that the plan of a run and, once it is compacted, its data files are there; reads no data.

    Raises:
        DamagedRunError: one is lost, or was cut.
    """
    if run.record.parts:
        run.plan_size()
    compaction = read_compaction(run.uri)
    if compaction is not None and (lost := first_lost_file(run.uri, compaction.files)) is not None:
        raise lost


def state(run: Run) -> str:
    """The status, its reason, and how to resume a run that is not done.

    A run whose driver was killed is recorded as running; it is reported as interrupted.
    """
    hint = how_to_resume(run.record.config.get("existing", "resume"))
    if run.is_interrupted():
        return f"interrupted: no driver is running; {hint}"
    if run.status == RunStatus.STOPPED:
        return f"stopped: {hint}"
    return run.status + (f": {run.record.reason}" if run.record.reason else "")


def describe_addition(run: Run, addition: Addition) -> str:
    """How far an addition of classifiers is, and how to resume one that is not done."""
    names, uri = " and ".join(addition.digests), uris.join(run.uri, addition.folder)
    totals = Totals.from_ledger(read_ledger(uri).table)
    rows = f"labels of {totals.utterances:,} utterances"
    if addition.status == RunStatus.DONE:
        missing = run.totals().utterances - totals.utterances
        return f"{names}: {rows}" + (f"; {missing:,} with a transcript have none" if missing else "")
    parts = f"{run.record.parts - run.unfinished_parts(addition.folder)} of {run.record.parts} parts done"
    state: str = addition.status
    if addition.status == RunStatus.RUNNING and is_lease_free(run.uri):
        state = "interrupted"
    if state in ("interrupted", RunStatus.STOPPED):
        state += ": run the same command again to resume"
    elif addition.reason:
        state += f": {addition.reason}"
    return f"{names}: {parts}, {rows}; {state}"


def how_to_resume(existing: str) -> str:
    """How to resume a run that is not done; `existing` is its command's setting for an existing run."""
    once = {"refuse": "--new-run", "overwrite": "--overwrite"}.get(existing)
    return "run the same command again to resume" + (f" (without {once})" if once else "")


def against_prediction(record: RunRecord) -> str:
    """One line that compares what `sewd plan` predicted with what came; empty without a prediction, or if resumed."""
    if record.predicted_s is None or record.wall_s is None:
        return ""
    off = record.wall_s / record.predicted_s - 1
    return f"predicted {duration(record.predicted_s)}, took {duration(record.wall_s)} ({off:+.0%})"


def last_start(attempts: Sequence[Attempt]) -> str:
    """One line about what the last start did; empty if it did nothing, failed, or still runs."""
    work = attempts[-1].work if attempts else None
    if work is None or work.rtfx is None or not work.audio_s:
        return ""
    stages = {"read": 0.0, "compute": 0.0, "rows": 0.0, **work.stage_s}
    replaced = f", {work.recognizers_replaced} replaced" if work.recognizers_replaced else ""
    busy = "" if work.model_busy is None else f", busy {work.model_busy:.0%}"
    return (
        f"{duration(work.audio_s)} audio in {duration(work.elapsed_s)}, {work.rtfx:.0f}x real time; "
        f"recognisers {work.recognizers}{replaced}{busy}; "
        f"decoding {duration(stages['read'])}, model {duration(stages['compute'])}, words {duration(stages['rows'])}"
    )


if __name__ == "__main__":
    single(status)
