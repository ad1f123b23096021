"""`sewd jobs`: list, follow and stop the jobs of a cluster."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from jobs.console import Exit, out, run
from jobs.submit import INTERRUPTS, follow_job
from jobs.verbs import GROUPS
from pipeline.errors import UsageError
from pipeline.report.formats import duration

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

Address = Annotated[str, typer.Option(help="Ray Jobs API of the cluster: http://HEAD:8265.")]
Name = Annotated[str, typer.Argument(metavar="JOB", help="Name of the job, as `sewd jobs list` shows it.")]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=GROUPS["jobs"].help)


@app.command("list")
def list_jobs(address: Address) -> int:
    """List jobs, the newest first: status, exit code, start, duration, command."""
    from pipeline.cluster import jobs_api  # noqa: PLC0415 - Ray takes a second to load

    rows = [_row(job) for job in jobs_api.jobs(jobs_api.connect(address))]
    table = Table(box=None)
    for place, title in enumerate(("job", "status", "exit", "started (UTC)", "duration")):
        # Names are never cut; on a narrow terminal the end of the command is.
        table.add_column(title, no_wrap=True, min_width=max(map(len, (title, *(row[place] for row in rows)))))
    table.add_column("command", no_wrap=out.is_terminal, overflow="ellipsis" if out.is_terminal else "fold")
    for row in rows:
        table.add_row(*row)
    out.print(table, markup=False)
    return Exit.DONE


def _row(job: JobDetails) -> tuple[str, ...]:
    from pipeline.cluster import jobs_api  # noqa: PLC0415

    begun, ended = (job.start_time or 0) / 1000, (job.end_time or 0) / 1000
    return (
        job.submission_id or "",
        job.status.value.lower(),
        "" if job.driver_exit_code is None else str(job.driver_exit_code),
        datetime.fromtimestamp(begun, UTC).strftime("%Y-%m-%d %H:%M:%S") if begun else "",
        duration(ended - begun) if begun and ended else "",
        jobs_api.displayed_command(job),
    )


@app.command()
def logs(
    job: Name,
    address: Address,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Follow the log until the job ends, and exit with its code.")
    ] = False,
    on_interrupt: Annotated[str, typer.Option(help="What Ctrl-C does with --follow: ask, detach or stop.")] = "detach",
) -> int:
    """Print the log of a job."""
    from pipeline.cluster import jobs_api  # noqa: PLC0415

    if on_interrupt not in INTERRUPTS:
        raise UsageError(f"on-interrupt: choose {', '.join(INTERRUPTS)}, not {on_interrupt!r}")
    client = jobs_api.connect(address)
    if follow:
        return follow_job(client, job, on_interrupt)
    typer.echo(jobs_api.logs(client, job), nl=False)
    return Exit.DONE


@app.command()
def stop(job: Name, address: Address) -> int:
    """Stop a job. Submit the same command again to resume its run."""
    from pipeline.cluster import jobs_api  # noqa: PLC0415

    stopped = jobs_api.stop(jobs_api.connect(address), job)
    out.print(f"stopping job {job}" if stopped else f"job {job} has already ended", markup=False)
    return Exit.DONE


if __name__ == "__main__":
    run(app)
