"""`schedd show`."""

from __future__ import annotations

import shlex
import time
from typing import TYPE_CHECKING, Any

import click
import msgspec

from schedd.cli.exits import Exit
from schedd.cli.options import NUMBERS, several
from schedd.cli.session import Session, client_command
from schedd.cli.values import write_duration, write_ids

if TYPE_CHECKING:
    from schedd.wire.messages import TaskDetail, TaskView

EXAMPLES = """
schedd show 5
schedd show 5-8 --json | jq '.[].result'
"""

#: Of a result that goes over many lines or kilobytes, so much is shown to people.
RESULT_CHARACTERS = 2000
#: Of a traceback its beginning and its end have so much together.
TRACEBACK_CHARACTERS = 10_000


@client_command("show", examples=EXAMPLES)
@click.argument("ids", nargs=-1, type=NUMBERS, metavar="ID...", required=True)
async def show_command(session: Session, ids: tuple[list[int], ...]) -> Exit:
    """Show everything that is known of tasks: what was asked, where it ran, how it ended, and what a call raised."""
    from schedd.cli.views import task_with_detail

    wanted = several(ids)
    async with session.connect() as client:
        found = await client.show(wanted)
    if session.out.as_json:
        session.out.json([task_with_detail(task, detail) for task, detail in found])
    else:
        for i, (task, detail) in enumerate(found):
            if i:
                session.out.line("")
            session.out.pairs(_head(task) + _body(task, detail) + _ends(detail))
    known = {task.id for task, _ in found}
    missing = [task_id for task_id in wanted if task_id not in known]
    if not missing:
        return Exit.OK
    session.out.error(f"there is no task {write_ids(missing)}")
    return Exit.NOT_FOUND


def _head(task: TaskView) -> list[tuple[str, str]]:
    from schedd.cli.views import clock, task_time

    state = f"{task.state} ({task.cause})" if task.cause else task.state
    rows = [
        ("task", str(task.id)),
        ("owner", task.owner),
        ("key", task.key or ""),
        ("job", task.job),
        ("kind", task.kind),
        ("state", state),
        ("message", task.message),
        ("exit code", "" if task.exit_code is None else str(task.exit_code)),
        ("priority", f"{task.priority:g}{_promotion(task)}"),
        ("worker", task.worker or ""),
        ("attempt", str(task.attempt)),
        ("submitted", clock(task.submitted_at)),
        ("started", clock(task.started_at)),
        ("finished", clock(task.finished_at)),
        ("waited" if task.started_at is None else "ran", task_time(task, time.time())),
    ]
    return [(name, value) for name, value in rows if value]


def _promotion(task: TaskView) -> str:
    """Say what adds to the priority."""
    if task.promoted is None:
        return ""
    sign = "-" if task.promoted < 0 else "+"
    return f" {sign} {abs(task.promoted):g} (last report of what it comes after)"


def _body(task: TaskView, detail: TaskDetail) -> list[tuple[str, str]]:
    from schedd.cli.views import BEFORE_DISPATCH, clock, text_or_base64, write_limits, write_map, write_requirements
    from schedd.core.model import Command

    rows: list[tuple[str, str]] = []
    match detail.payload:
        case Command() as command:
            rows += [("command", shlex.join(command.argv)), ("cwd", command.cwd or ""), ("env", write_map(command.env))]
        case None:
            pass
        case call:
            rows.append(("function", call.path or f"{task.kind} ({len(call.function)} bytes, pickled)"))
    if detail.argument:
        argument = text_or_base64(detail.argument)
        rows.append(("argument", argument if isinstance(argument, str) else f"{len(detail.argument)} bytes"))
    rules = detail.rules
    rows += [
        ("needs", write_requirements(detail.requirements)),
        ("timeout", "" if rules.timeout_s is None else write_duration(rules.timeout_s)),
        ("retries", write_limits(detail.limits)),
        ("after", write_ids(detail.after)),
        ("still missing", write_ids(detail.missing)),
        ("not before", clock(detail.not_before) if task.state in BEFORE_DISPATCH and detail.not_before else ""),
        ("devices", ", ".join(detail.devices)),
        ("progress", "" if not task.report else write_map(task.report)),
    ]
    return [(name, value) for name, value in rows if value]


def _ends(detail: TaskDetail) -> list[tuple[str, str]]:
    from schedd.cli.views import attempts
    from schedd.wire.raised import decode_raised, shorten

    rows: list[tuple[str, str]] = []
    for record in attempts(detail.attempts):
        started, finished = record["started_at"], record["finished_at"]
        ran = f" after {write_duration(finished - started)}" if started and finished else ""
        where = f" on {record['worker']}" if record["worker"] else ""
        name = f"attempt {record['attempt']}" if record["attempt"] else "never ran"
        rows.append((name, f"{record['cause']}{where}{ran}{_how(record)}"))
    if (raised := decode_raised(detail.result)) is not None:
        rows.append(("traceback", shorten(raised.traceback.rstrip("\n"), TRACEBACK_CHARACTERS)))
    elif detail.result is not None:
        text = _text_of(detail.result)
        rows.append(("result", text if len(text) <= RESULT_CHARACTERS else f"{text[:RESULT_CHARACTERS]} …"))
    return rows


def _text_of(result: bytes) -> str:
    from schedd.cli.views import readable, text_or_base64

    if not isinstance(text_or_base64(result), str):
        return f"{len(result)} bytes (not text)"
    value = readable(result)
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _how(record: dict[str, Any]) -> str:
    """How an attempt ended; of one that went wrong when and why, for nothing else says it of one of several."""
    from schedd.cli.views import clock

    code = "" if record["exit_code"] is None else f", exit code {record['exit_code']}"
    if record["cause"] == "ok":
        return code
    if record["cause"] == "preempted":  # nothing went wrong
        return f"{code}, {record['message']}" if record["message"] else code
    told = f": {record['message']}" if record["message"] else code
    excuse = ", not counted because the worker was in quarantine" if record["excused"] else ""
    return f", {clock(record['finished_at'])}{excuse}{told}"
