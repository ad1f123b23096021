"""`sewd jobs`: the jobs that were submitted to a cluster: list, logs, stop."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from jobs.console import Exit, duration, out, run
from jobs.submit import INTERRUPTS, follow_to_the_end
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

Address = Annotated[str, typer.Option(help="The Jobs API: http://HEAD:8265.")]
Name = Annotated[str, typer.Argument(metavar="JOB", help="As `sewd jobs list` names it.")]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help="The jobs of a cluster.")


@app.command("list")
def list_jobs(address: Address) -> int:
    """Each job, the last first: since when, how long, how it stands, what it runs."""
    from pipeline.cluster import jobs_api  # noqa: PLC0415 - Ray takes a second to load

    rows = [_row(job) for job in jobs_api.jobs(jobs_api.connect(address))]
    table = Table(box=None)
    for place, title in enumerate(("job", "status", "exit", "started (UTC)", "took")):
        # As wide as the longest: a name cut short is no name. What does not fit a terminal is the command's end.
        table.add_column(title, no_wrap=True, min_width=max(map(len, (title, *(row[place] for row in rows)))))
    table.add_column("command", no_wrap=out.is_terminal, overflow="ellipsis" if out.is_terminal else "fold")
    for row in rows:
        table.add_row(*row)
    out.print(table, markup=False)
    return Exit.DONE


def _row(job: JobDetails) -> tuple[str, ...]:
    begun, ended = (job.start_time or 0) / 1000, (job.end_time or 0) / 1000
    return (
        job.submission_id or "",
        job.status.value.lower(),
        "" if job.driver_exit_code is None else str(job.driver_exit_code),
        datetime.fromtimestamp(begun, UTC).strftime("%Y-%m-%d %H:%M:%S") if begun else "",
        duration(ended - begun) if begun and ended else "",
        job.entrypoint.replace("python -m jobs.main", "sewd", 1),
    )


@app.command()
def logs(
    job: Name,
    address: Address,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until it ends; exit as it exits.")] = False,
    on_interrupt: Annotated[str, typer.Option(help="Of Ctrl-C with --follow: ask, detach or stop.")] = "detach",
) -> int:
    """What a job has written."""
    from pipeline.cluster import jobs_api  # noqa: PLC0415

    if on_interrupt not in INTERRUPTS:
        raise UsageError(f"on-interrupt: {', '.join(INTERRUPTS)}, not {on_interrupt!r}")
    client = jobs_api.connect(address)
    if follow:
        return follow_to_the_end(client, job, on_interrupt)
    typer.echo(jobs_api.logs(client, job), nl=False)
    return Exit.DONE


@app.command()
def stop(job: Name, address: Address) -> int:
    """Stop a job; its run goes on when the same command is submitted again."""
    from pipeline.cluster import jobs_api  # noqa: PLC0415

    stopped = jobs_api.stop(jobs_api.connect(address), job)
    out.print(f"job {job} is asked to stop" if stopped else f"job {job} had ended", markup=False)
    return Exit.DONE


if __name__ == "__main__":
    run(app)
