"""Option types and groups of options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click

from schedd.cli.values import ID_MAX, nearest, parse_duration, parse_ids

if TYPE_CHECKING:
    from schedd.wire.messages import Selection

    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType  # generic only since click 8.4

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

#: In the order of a task's life.
STATES = (
    "held",
    "waiting",
    "delayed",
    "queued",
    "assigned",
    "running",
    "revoking",
    "succeeded",
    "failed",
    "cancelled",
)


LOG_LEVEL = click.Choice(["debug", "info", "warning", "error"])
LOG_FORMAT = click.Choice(["text", "json"])


class BadInput(click.UsageError):
    """A usage error that knows what to do about it; the hint may be empty."""

    def __init__(self, message: str, hint: str = "", ctx: click.Context | None = None) -> None:
        super().__init__(message, ctx)
        self.hint = hint


class Parsed(_ParamType):
    """An option read by a function of `cli.values`."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Amount(click.FloatRange):
    """A number in a range; what is not a number is in none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and value.strip().lstrip("+-").lower() == "nan":
            self.fail(f"{value!r} is not a number", param, ctx)
        return super().convert(value, param, ctx)


class StateType(_ParamType):
    """A state of a task, by its word."""

    name = "state"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in STATES:
            raise BadInput(f"{value!r} is not a state of a task", nearest(str(value), STATES), ctx)
        return str(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(state) for state in STATES if state.startswith(incomplete)]


DURATION = Parsed("duration", parse_duration)
NUMBERS = Parsed("ids", parse_ids)
TASK_ID = click.IntRange(1, ID_MAX)


def several(lists: Iterable[Iterable[int]]) -> list[int]:
    """Join the ids of repeated options or arguments, each id once, in the order given."""
    return list(dict.fromkeys(number for numbers in lists for number in numbers))


def apply(decorators: Iterable[Decorator], function: Callable[..., Any]) -> Callable[..., Any]:
    """Apply decorators so that their options appear in the help in this order."""
    for decorator in reversed(list(decorators)):
        function = decorator(function)
    return function


def selection_options(*, with_all: bool) -> Decorator:
    """Add the ways to say which tasks: ID…, --job and, where it is allowed, --all."""
    options = [
        click.argument("ids", nargs=-1, type=NUMBERS, metavar="[ID]..."),
        click.option("--job", metavar="NAME", help="All tasks of this job."),
    ]
    if with_all:
        options.append(click.option("--all", "everything", is_flag=True, help="All unfinished tasks."))
    return lambda function: apply(options, function)


def select(
    ids: tuple[list[int], ...], job: str | None, everything: bool = False, *, unfinished: bool = False
) -> Selection:
    """Make the selection that ID…, --job and --all mean. Raises click.UsageError where they mean nothing or clash."""
    from schedd.core.model import TaskId
    from schedd.wire.messages import Selection

    if (bool(ids) + (job is not None) + everything) > 1:
        raise click.UsageError("give task ids, --job or --all, not several of them", click.get_current_context())
    if ids:
        return Selection(ids=[TaskId(i) for i in several(ids)])
    if job is not None:
        return Selection(job=job, unfinished=unfinished)
    if not everything:
        raise click.UsageError("say which tasks: ids (5, 1-20, 1,4,7), --job NAME or --all", _context())
    return Selection(unfinished=True)


def _context() -> click.Context | None:
    return click.get_current_context(silent=True)


def credential_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for who we are, and for whom we take for the daemon."""
    return apply(_CREDENTIALS, function)


_CREDENTIALS: list[Decorator] = [
    click.option("--token-file", metavar="FILE", help="File with a token. Default: $SCHEDD_TOKEN_FILE."),
    click.option("--tls-ca", metavar="FILE", help='Authority of the daemon, or "system". Default: $SCHEDD_TLS_CA.'),
    click.option("--tls-cert", metavar="FILE", help="Certificate of our own. Default: $SCHEDD_TLS_CERT."),
    click.option("--tls-key", metavar="FILE", help="Its key. Default: $SCHEDD_TLS_KEY."),
    click.option("--tls-name", metavar="NAME", help="Name in the daemon's certificate. Default: $SCHEDD_TLS_NAME."),
]

_REQUIREMENTS: list[Decorator] = [
    click.option("--gpus", type=float, metavar="N", help="GPUs: whole, or a share of one (0.5)."),
    click.option("--gpu-memory", type=float, metavar="GB", help="GPU memory on each of them."),
    click.option("--gpu-model", metavar="MODEL", help="Only this model of GPU."),
    click.option("--cpus", type=float, metavar="N", help="CPUs. Default: 1."),
    click.option("--ram", type=float, metavar="GB", help="Host memory."),
    click.option("--label", "labels", multiple=True, metavar="K=V", help="Only workers with this label. Repeatable."),
    click.option(
        "--resource",
        "resources",
        multiple=True,
        metavar="NAME=AMOUNT",
        help="An amount of what workers declare themselves. Repeatable.",
    ),
    click.option("--time-estimate", type=DURATION, metavar="DURATION", help="How long it should take; a hint only."),
]


def requirement_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for what a task asks of a worker."""
    return apply(_REQUIREMENTS, function)
