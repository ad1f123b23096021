"""`sewd status`: how far a run is, from its commits, its record and its lease; asks no Ray."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from jobs.console import Exit, duration, out, single, warn
from pipeline import Run


def status(run: Annotated[str, typer.Argument(metavar="RUN", help="Directory or prefix of the run.")]) -> int:
    """Parts, chunks, rows, errors and audio of a run so far."""
    opened = Run.open(run)
    totals = opened.totals()
    done = opened.parts_done()
    share = min(totals.source_bytes / max(opened.record["input_bytes"], 1), 1.0)
    table = Table(show_header=False, box=None)
    rows = {
        "status": state(opened),
        "parts": f"{len(done)} of {opened.record['parts']} done",
        "chunks": f"{totals.chunks} committed",
        "input": f"{1.0 if opened.status == 'done' else share:.0%} of {opened.record['input_bytes'] / 2**20:,.1f} MiB",
        "transcripts": f"{totals.utterances:,}",
        "errors": f"{totals.errors:,}" + "".join(f"  {code} {count}" for code, count in totals.error_codes.items()),
        "audio": f"{duration(totals.audio_s)}",
        "model time": duration(totals.compute_s)
        + (f" ({totals.audio_s / totals.compute_s:.0f}x real time)" if totals.compute_s else ""),
        "starts": f"{len(opened.record['attempts'])}, the first {opened.record['created']}",
    }
    if totals.engines:
        rows["computed by"] = "\n".join(f"{engine}: {count:,}" for engine, count in totals.engines.items())
    if told := last_start(opened):
        rows["last start"] = told
    for name, value in rows.items():
        table.add_row(name, value)
    out.print(table)
    warn(totals.warnings)
    return Exit.DONE


def state(run: Run) -> str:
    """The status and its reason; of a run that can go on, how; of one whose driver was killed, that it was."""
    go_on = how_to_go_on(run.record["config"].get("existing", "resume"))
    if run.is_interrupted():
        return f"interrupted: no driver is at work; {go_on}"
    if run.status == "stopped":
        return f"stopped: {go_on}"
    return run.status + (f": {run.record['reason']}" if run.record.get("reason") else "")


def how_to_go_on(existing: str) -> str:
    """How to go on with a run that is not done; `existing` is what its command said of a run that is there already."""
    once = {"refuse": "--new-run", "overwrite": "--overwrite"}.get(existing)
    return "the same command goes on from here" + (f" (without {once})" if once else "")


def last_start(run: Run) -> str:
    """What the last start did, on a line; nothing where it did nothing, failed, or is not over."""
    work = run.record["attempts"][-1] if run.record["attempts"] else {}
    if not work.get("elapsed_s") or not work["audio_s"]:
        return ""
    stages = work["stage_s"]
    replaced = f", {work['recognizers_replaced']} replaced" if work["recognizers_replaced"] else ""
    busy = "" if work["model_busy"] is None else f", busy {work['model_busy']:.0%}"
    return (
        f"{duration(work['audio_s'])} audio in {duration(work['elapsed_s'])}, {work['rtfx']:.0f}x real time; "
        f"recognisers {work['recognizers']}{replaced}{busy}; "
        f"decoding {duration(stages['read'])}, model {duration(stages['compute'])}, words {duration(stages['rows'])}"
    )


if __name__ == "__main__":
    single(status)
