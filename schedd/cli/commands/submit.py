"""`schedd submit`: from a command line or a job file to tasks, and with --wait to their ends."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from schedd.cli.exits import Exit
from schedd.cli.options import (
    DURATION,
    NUMBERS,
    BadInput,
    Decorator,
    Parsed,
    apply,
    requirement_options,
    several,
)
from schedd.cli.session import Session, client_command
from schedd.cli.values import is_utf8, parse_amounts, parse_numbers, parse_pairs, write_ids

if TYPE_CHECKING:
    from schedd.cli.jobfile import Plan
    from schedd.wire.messages import Submitted

EXAMPLES = """
schedd submit -- python train.py --lr 0.1
schedd submit --gpus 1 --gpu-memory 12 --priority 5 --job sweep -- python train.py
schedd submit --array 1-100 --wait -- python evaluate.py --fold {}
schedd submit --each-line configs.txt --cpus 2 -- ./evaluate.sh
schedd submit --after 12,13 --timeout 2h --retries 2 -- python report.py
schedd submit --gpus 1 --gpu-memory 12 --retry-oom 3 -- python train.py
schedd submit --file job.toml --strict
"""

_OPTIONS: list[Decorator] = [
    click.option("--priority", type=float, metavar="P", help="Higher is more important. Default: 0."),
    click.option("--job", "--name", "job", metavar="NAME", help="Group of tasks to wait for, cancel or list together."),
    click.option("--kind", metavar="K", help="What the learning groups by. Default: the program's name."),
    click.option("--key", metavar="KEY", help="Submit at most once: again with the same key gives the same task."),
    click.option("--timeout", type=DURATION, metavar="DURATION", help="End an attempt that runs longer (90s, 5m, 2h)."),
    click.option("--retries", type=int, metavar="N", help="Try again after a failure or timeout, at most N times."),
    click.option("--retry-timeout", type=int, metavar="N", help="The same after a timeout alone."),
    click.option("--retry-oom", type=int, metavar="N", help="The same after it ran out of memory."),
    click.option("--retry-lost", type=int, metavar="N", help="The same after its worker was lost."),
    click.option("--retry-rejected", type=int, metavar="N", help="The same after a worker could not hold it."),
    click.option("--retry-delay", type=DURATION, metavar="DURATION", help="The first pause is up to this long."),
    click.option(
        "--memory-growth", type=float, metavar="X", help="Out of memory, ask for X times as much. 1: for no more."
    ),
    click.option(
        "--grace", type=DURATION, metavar="S", help="Between asking a task to end and killing it. Default: 5 s."
    ),
    click.option("--delay", type=DURATION, metavar="DURATION", help="Do not start before this time has passed."),
    click.option("--after", multiple=True, type=NUMBERS, metavar="ID,...", help="Start when these have succeeded."),
    click.option("--hold", is_flag=True, help="Keep back until `schedd release`."),
    click.option("--env", multiple=True, metavar="K=V", help="Set a variable; K alone copies yours. Repeatable."),
    click.option("--env-all", is_flag=True, help="Send your whole environment; by default none of it is sent."),
    click.option("--cwd", metavar="DIR", help="Directory on the worker. Default: the current one."),
    click.option("--stdin", metavar="FILE", help="What the task reads as its standard input."),
    click.option(
        "--array",
        type=Parsed("numbers", parse_numbers),
        metavar="1-100[:STEP]",
        help="A task for each number; it is in $SCHEDD_INDEX and replaces {} in the arguments.",
    ),
    click.option(
        "--each-line",
        metavar="FILE",
        help="A task for each line; it is in $SCHEDD_LINE and replaces {} in the arguments.",
    ),
    click.option(
        "--file", "job_file", metavar="JOB.TOML", help="Submit the tasks of a job file; other options are its defaults."
    ),
    click.option("--strict", is_flag=True, help="Refuse where no worker that is there now could ever run it."),
    click.option("--wait", "-w", is_flag=True, help="Wait for the tasks to end; exit with 1 if one did not succeed."),
    click.option(
        "--on-interrupt",
        type=click.Choice(["cancel", "leave", "ask"]),
        default="ask",
        help="What Ctrl-C in --wait does to the tasks. Default: ask on a terminal, leave elsewhere.",
    ),
]


def submit_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a task beyond its requirements, and those of the submit itself."""
    return apply(_OPTIONS, function)


@client_command("submit", examples=EXAMPLES, context_settings={"allow_interspersed_args": False})
@click.argument("argv", nargs=-1, type=click.UNPROCESSED, metavar="[--] COMMAND [ARG]...")
@requirement_options
@submit_options
async def submit_command(
    session: Session, wait: bool, strict: bool, on_interrupt: str, job_file: str | None, env_all: bool, **given: Any
) -> Exit:
    """Submit a command, an array of them, or a job file.

    Options come before the command. With --quiet, stdout has nothing but the ids, one a line.
    """
    plan = make_plan(given, job_file, whole_environment(session) if env_all else {})
    async with session.connect() as client:
        submitted = await client.submit_many(plan.specs, plan.entries, strict=strict)
        for warning in submitted.warnings:
            session.out.warn(warning)
        if not wait:
            _show(session, plan, submitted)
            return Exit.OK
        if not session.out.as_json:
            _show(session, plan, submitted)
        from schedd.cli.waiting import wait_for_submitted

        return await wait_for_submitted(session, client, submitted.ids, on_interrupt, _as_json(plan, submitted))


def whole_environment(session: Session) -> dict[str, str]:
    """Our environment, but for variables that cannot be sent."""
    environment = {name: value for name, value in os.environ.items() if is_utf8(name + value)}
    if left_out := [name for name in os.environ if name not in environment]:
        session.out.warn(f"--env-all leaves out what is not UTF-8: {', '.join(left_out)}")
    return environment


def make_plan(given: dict[str, Any], job_file: str | None, environment: dict[str, str]) -> Plan:
    """Turn the options of the command line into specs and entries; `environment` is for all tasks.

    Raises BadInput or click.UsageError.
    """
    from schedd.cli.jobfile import Plan, read_job_file
    from schedd.cli.taskspec import TaskOptions, make_entries, make_spec

    argv: Sequence[str] = given.pop("argv")
    if argv and job_file is not None:
        raise BadInput("give a command or --file, not both")
    if not argv and job_file is None:
        raise BadInput("there is no command to run", "schedd submit [OPTIONS] -- COMMAND [ARG]...")
    try:
        options = task_options(given, environment)
        if job_file is not None:
            return read_job_file(Path(job_file), {name.replace("_", "-"): value for name, value in options.items()})
        task = TaskOptions(command=list(argv), **options)
        spec = make_spec(task)
        return Plan([spec], list(make_entries(task, 0, [])), {})
    except OSError as error:
        raise BadInput(f"{error.filename}: {error.strerror}") from None
    except ValueError as error:
        raise BadInput(str(error)) from None


def task_options(given: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
    """Keep what the user gave, under the names of `TaskOptions`. Raises ValueError."""
    labels, resources, after = given.pop("labels"), given.pop("resources"), given.pop("after")
    environment = environment | read_environment(given.pop("env"))
    # By identity: 0 is a value, and not the same as an option that was not given.
    options = {name: value for name, value in given.items() if value is not None and value is not False}
    if labels:
        options["label"] = parse_pairs(labels, "--label")
    if resources:
        options["resource"] = parse_amounts(resources, "--resource")
    if after:
        options["after"] = several(after)
    if environment:
        options["env"] = environment
    return options


def read_environment(items: Sequence[str]) -> dict[str, str]:
    """Collect the variables to send: K=V as it is, K alone from our environment. Raises ValueError."""
    environment: dict[str, str] = {}
    for item in items:
        if "=" in item:
            environment.update(parse_pairs([item], "--env"))
        elif item in os.environ:
            environment[item] = os.environ[item]
        else:
            raise ValueError(f"--env {item}: there is no such variable here; write {item}=VALUE")
    return environment


def _as_json(plan: Plan, submitted: Submitted) -> dict[str, Any]:
    names = {name: [submitted.ids[i] for i in places] for name, places in plan.names.items()}
    return {"ids": submitted.ids, "warnings": submitted.warnings, "names": names}


def _show(session: Session, plan: Plan, submitted: Submitted) -> None:
    ids = submitted.ids
    if session.out.as_json:
        session.out.json(_as_json(plan, submitted))
    elif session.out.quiet:
        session.out.line("\n".join(map(str, ids)))
    else:
        session.out.line(f"submitted {'task' if len(ids) == 1 else f'{len(ids)} tasks:'} {write_ids(ids)}")
        for name, places in plan.names.items():
            session.out.line(f"  {name}: {write_ids([ids[i] for i in places])}")
