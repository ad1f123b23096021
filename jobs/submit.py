"""`sewd submit`: run a verb as a job on a Ray cluster, follow its log, and exit with its code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.config_file import arguments_of_file, has_file, without_file
from jobs.console import Exit, err, single
from jobs.verbs import SUBMITTABLE, application
from pipeline.cluster.job_environment import check_arguments, job_variables
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

INTERRUPTS = ("ask", "detach", "stop")


def submit(
    command: Annotated[
        list[str], typer.Argument(metavar="-- VERB ...", help="The verb and its options, as after `sewd`.")
    ],
    address: Annotated[str, typer.Option(help="Ray Jobs API of the cluster: http://HEAD:8265.")] = "",
    env: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Environment variable of the job; not for secrets.")
    ] = None,
    require_env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Require that the cluster sets this variable, for example credentials; its value is not sent.",
        ),
    ] = None,
    job: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the job; by default Ray chooses one.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for the job to end.")] = False,
    on_interrupt: Annotated[
        str,
        typer.Option(
            help="What Ctrl-C does: ask, detach (the job continues) or stop. Without a terminal, ask detaches."
        ),
    ] = "ask",
    kuberay: Annotated[
        bool, typer.Option("--kuberay", help="Print a RayJob manifest for kubectl instead of submitting.")
    ] = False,
    image: Annotated[str, typer.Option(help="With --kuberay: container image with this project installed.")] = "",
    workers: Annotated[str, typer.Option(metavar="N", help="With --kuberay: number of GPU nodes.")] = "4",
    secret: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="With --kuberay: Kubernetes secret whose keys become variables."),
    ] = None,
) -> int:
    """Run VERB as a job on a Ray cluster, follow its log, and exit with its code.

    The cluster must be able to reach what VERB reads and writes. Exit codes: that of VERB; 1 if the cluster is lost;
    130 if the job is stopped. Submit the same command again to resume a run.
    """
    arguments = checked(command)
    variables = job_variables(env or (), require_env or ())
    if on_interrupt not in INTERRUPTS:
        raise UsageError(f"on-interrupt: choose {', '.join(INTERRUPTS)}, not {on_interrupt!r}")
    if kuberay:
        return _print_manifest(arguments, variables, image, workers, secret or ())
    if not address:
        raise UsageError("address: missing; give the Jobs API of the cluster, --address http://HEAD:8265")
    from pipeline.cluster import jobs_api  # noqa: PLC0415 - Ray takes a second to load

    client = jobs_api.connect(address)
    name = jobs_api.submit(client, arguments, variables, job)
    err.print(f"job {name}: sewd jobs logs {name} --address {address}", markup=False)
    return Exit.DONE if detach else follow_job(client, name, on_interrupt)


def checked(command: Sequence[str]) -> list[str]:
    """The verb and its arguments for the cluster, with `--address auto` unless they name an address.

    Raises:
        UsageError: there is no such verb, or it does not accept the arguments.
    """
    verb, *rest = command
    if verb not in SUBMITTABLE:
        raise UsageError(f"cannot submit {verb!r}: choose one of {', '.join(SUBMITTABLE)}")
    check_arguments(rest)
    context = typer.main.get_command(application([verb])).make_context(verb, list(rest))
    source = getattr(context.get_parameter_source("address"), "name", "")
    default = next((item.default for item in context.command.params if item.name == "address"), None)
    # A file that --print-config wrote names every option: what equals the default was not chosen.
    is_default = source == "DEFAULT" or (source == "DEFAULT_MAP" and context.params["address"] == default)
    if has_file(context):  # it is here, and not on the cluster
        options, positional = arguments_of_file(context)
        options = [option for option in options if not (is_default and option.startswith("--address="))]
        end = ["--"] if "--" not in rest and any(argument.startswith("-") for argument in positional) else []
        rest = [*options, *without_file(rest), *end, *positional]
        check_arguments(rest)
    if is_default:
        rest = ["--address", "auto", *rest]
    return [verb, *rest]


def follow_job(client: JobSubmissionClient, name: str, on_interrupt: str) -> int:
    """Print the log of a job until it ends, and return its exit code. Ctrl-C detaches from the job or stops it."""
    from pipeline.cluster import jobs_api  # noqa: PLC0415

    stopping, log = False, jobs_api.Log(_write)
    while True:
        try:
            found = jobs_api.follow(client, name, log)
        except KeyboardInterrupt:
            if stopping or not _wants_stop(on_interrupt):
                err.print(f"detached: job {name} continues", markup=False)
                return Exit.STOPPED
            stopping = True
            err.print(f"stopping job {name}; press Ctrl-C again to detach", markup=False)
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
    answer: str = typer.prompt("\ndetach and leave the job running, or stop it? [d/s]", default="d", err=True)
    return answer.strip().lower().startswith("s")


def _print_manifest(
    arguments: Sequence[str], variables: dict[str, str], image: str, workers: str, secrets: Sequence[str]
) -> int:
    from pipeline.cluster.kuberay import ray_job  # noqa: PLC0415

    if not workers.isdecimal() or int(workers) < 1:
        raise UsageError(f"workers: {workers!r} is not a positive number")
    if not image:
        raise UsageError("kuberay: needs --image REGISTRY/NAME:TAG, a Ray image with this project installed")
    _write(ray_job(arguments, variables, image, int(workers), secrets))
    return Exit.DONE


if __name__ == "__main__":
    single(submit)
