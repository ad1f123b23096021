"""`sewd submit`: a verb as a job on a Ray cluster, its log here, its exit code ours."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.console import Exit, err, single
from pipeline.cluster.job_environment import check_arguments, job_variables
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

INTERRUPTS = ("ask", "detach", "stop")


def submit(
    command: Annotated[list[str], typer.Argument(metavar="-- VERB ...", help="What would follow `sewd` here.")],
    address: Annotated[str, typer.Option(help="The Jobs API: http://HEAD:8265, Ray's dashboard.")] = "",
    env: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="For the job; no secrets.")] = None,
    require_env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="The cluster must have it set, credentials for example; values stay there."),
    ] = None,
    job: Annotated[str | None, typer.Option(metavar="NAME", help="What to call the job; else Ray chooses.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for the job.")] = False,
    on_interrupt: Annotated[
        str, typer.Option(help="Ctrl-C: ask, detach (the job goes on) or stop it; ask detaches without a terminal.")
    ] = "ask",
    kuberay: Annotated[bool, typer.Option("--kuberay", help="Print a RayJob for kubectl; submit nothing.")] = False,
    image: Annotated[str, typer.Option(help="With --kuberay: the image, with this project installed.")] = "",
    workers: Annotated[str, typer.Option(metavar="N", help="With --kuberay: machines with a GPU.")] = "4",
    secret: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="With --kuberay: a Kubernetes secret to take variables of.")
    ] = None,
) -> int:
    """Run VERB on a Ray cluster: submit this code as a job, follow its log, exit as it exits.

    What VERB reads and writes must be where the cluster can reach it. Exit codes: the verb's own; 1 where the cluster
    was lost, 130 for a job that was stopped. A run goes on when the same command is submitted again.
    """
    arguments = checked(command)
    variables = job_variables(env or (), require_env or ())
    if on_interrupt not in INTERRUPTS:
        raise UsageError(f"on-interrupt: {', '.join(INTERRUPTS)}, not {on_interrupt!r}")
    if kuberay:
        return _print_manifest(arguments, variables, image, workers, secret or ())
    if not address:
        raise UsageError("address: where is the cluster? --address http://HEAD:8265")
    from pipeline.cluster import jobs_api  # noqa: PLC0415 - Ray takes a second to load

    client = jobs_api.connect(address)
    name = jobs_api.submit(client, arguments, variables, job)
    err.print(f"job {name}: sewd jobs logs {name} --address {address}", markup=False)
    return Exit.DONE if detach else follow_to_the_end(client, name, on_interrupt)


def checked(command: Sequence[str]) -> list[str]:
    """The verb and its arguments as the cluster gets them: on the cluster's own Ray unless they say which.

    Raises:
        UsageError: no such verb, or it would refuse the arguments.
    """
    from jobs.main import app  # noqa: PLC0415 - it imports this module

    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    verb, *rest = command
    if verb not in verbs or verb in ("submit", "jobs", "demo"):
        raise UsageError(f"there is no verb {verb!r} to submit")
    check_arguments(rest)
    context = verbs[verb].make_context(verb, list(rest))
    default = context.get_parameter_source("address")
    if "address" in context.params and default is not None and default.name == "DEFAULT":
        rest = ["--address", "auto", *rest]
    return [verb, *rest]


def follow_to_the_end(client: JobSubmissionClient, name: str, on_interrupt: str) -> int:
    """Write a job's log until it ends, and return its exit code; Ctrl-C detaches from it or stops it."""
    from pipeline.cluster import jobs_api  # noqa: PLC0415

    stopping, log = False, jobs_api.Log(_write)
    while True:
        try:
            found = jobs_api.follow(client, name, log)
        except KeyboardInterrupt:
            if stopping or not _wants_stop(on_interrupt):
                err.print(f"detached: job {name} goes on", markup=False)
                return Exit.STOPPED
            stopping = True
            err.print(f"stopping job {name}; Ctrl-C again to leave it to itself", markup=False)
            jobs_api.stop(client, name)
            continue
        code = jobs_api.exit_code(found)
        if code:
            err.print(
                f"job {name}: {found.status.value.lower()}, exit code {code}. {found.message or ''}", markup=False
            )
        return code


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _wants_stop(on_interrupt: str) -> bool:
    if on_interrupt != "ask":
        return on_interrupt == "stop"
    if not sys.stdin.isatty():
        return False
    answer: str = typer.prompt("\ndetach, and leave the job running, or stop it? [d/s]", default="d", err=True)
    return answer.strip().lower().startswith("s")


def _print_manifest(
    arguments: Sequence[str], variables: dict[str, str], image: str, workers: str, secrets: Sequence[str]
) -> int:
    from pipeline.cluster.kuberay import ray_job  # noqa: PLC0415

    if not workers.isdecimal() or int(workers) < 1:
        raise UsageError(f"workers: {workers!r} is no number of machines")
    if not image:
        raise UsageError("kuberay: --image REGISTRY/NAME:TAG, an image of Ray with this project installed")
    _write(ray_job(arguments, variables, image, int(workers), secrets))
    return Exit.DONE


if __name__ == "__main__":
    single(submit)
