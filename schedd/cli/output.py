"""The only place that prints. stdout is data, stderr is talk.

Rich is imported when a table is drawn on a terminal and not before: it costs as much as the rest of a short command.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import traceback
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import msgspec

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

#: The words of states and statuses carry the meaning; colour only repeats it.
STYLES = {
    "running": "cyan",
    "assigned": "cyan",
    "revoking": "cyan",
    "queued": "yellow",
    "waiting": "yellow",
    "delayed": "yellow",
    "held": "magenta",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "dim",
    "idle": "green",
    "busy": "cyan",
    "draining": "yellow",
    "unreachable": "red",
    "quarantined": "red",
    "dead": "red",
}


class Column(msgspec.Struct, frozen=True):
    """A column of a table: `right` aligns numbers; `fold` lets a long text give way first where space is short."""

    title: str
    right: bool = False
    fold: bool = False


class OutputClosed(Exception):
    """Who read our output went away (`| head`): end silently."""


def printable(text: str) -> str:
    """Replace control characters and lone surrogates, so that a name cannot steer the terminal or break a line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def encode_json(value: Any, *, indent: int | None = None) -> str:
    """JSON in which nothing can steer a terminal either: below U+0020 the encoder escapes it, above we do."""
    encoded = msgspec.json.encode(value)
    text = (encoded if indent is None else msgspec.json.format(encoded, indent=indent)).decode()
    if text.isascii() and "\x7f" not in text:
        return text
    return "".join(c if c.isprintable() or c == "\n" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))


def text_width(text: str) -> int:
    """How many columns a text takes on a terminal: wide characters two, those that go on top of others none."""
    if text.isascii():
        return len(text)
    return sum(_character_width(character) for character in text)


def _character_width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def plain_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table in plain text, two spaces between columns, nothing cut: for pipes and files."""
    lines = [[column.title for column in columns], *[[printable(cell) for cell in row] for row in rows]]
    widths = [max(text_width(line[i]) for line in lines) for i in range(len(columns))]

    def pad(cell: str, width: int, column: Column) -> str:
        space = " " * (width - text_width(cell))
        return space + cell if column.right else cell + space

    def lay_out(line: Sequence[str]) -> str:
        return "  ".join(pad(*cell) for cell in zip(line, widths, columns, strict=True)).rstrip()

    return "\n".join(lay_out(line) for line in lines)


def fit_table(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int
) -> tuple[Sequence[Column], Sequence[Sequence[str]]]:
    """Turn a table that is too wide, where that makes it narrower: each row is a column under its first cell."""
    if (before := _width_of(columns, rows)) <= width:
        return columns, rows
    turned = [Column(columns[0].title), *(Column(row[0], right=True) for row in rows)]
    cells = [[column.title, *(row[n] for row in rows)] for n, column in enumerate(columns) if n]
    return (turned, cells) if _width_of(turned, cells) < before else (columns, rows)


def _width_of(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> int:
    return max(map(text_width, plain_table(columns, rows).splitlines()))


def _ends_silently(function: Callable[..., None]) -> Callable[..., None]:
    def write(*arguments: Any) -> None:
        try:
            function(*arguments)
        except BrokenPipeError:
            raise OutputClosed from None

    return write


@_ends_silently
def _print(text: str, stream: TextIO) -> None:
    print(text, file=stream)


def _talk(text: str) -> None:
    """Write to stderr; of what others had a hand in, only the line breaks are taken at their word."""
    _print("\n".join(map(printable, text.split("\n"))), sys.stderr)


@_ends_silently
def _write_bytes(data: bytes) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def set_up() -> None:
    """Write what the terminal's encoding does not have, or a lone surrogate of a file name, as an escape.

    What goes to a stream that was closed from the start (`>&-`) goes nowhere, and nothing comes from one (`<&-`).
    """
    sys.stdin = sys.stdin or Path(os.devnull).open()  # noqa: SIM115 - for as long as we run
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115 - for as long as we run
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115 - for as long as we run
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def finish() -> None:
    """Flush stdout now, where a broken pipe can still be caught. Raises OutputClosed."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise OutputClosed from None


def abandon() -> None:
    """Point stdout at nothing, so that the interpreter's own flush at exit has nobody to complain about."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def show_error(message: str, hint: str = "") -> None:
    """Write `error:`, then `hint:` where there is one, to stderr."""
    _talk_labelled("error", "31", message)
    if hint:
        _talk_labelled("hint", "36", hint)


def show_bug() -> None:
    """Write the traceback of the exception at hand to stderr, and say that it is not the user's fault."""
    traceback.print_exc()
    show_error("this is a bug in schedd", "please report it with the traceback above")


def _talk_labelled(word: str, colour: str, text: str) -> None:
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb":
        # By hand: an error message is no reason to import rich.
        _write_label(f"\x1b[1;{colour}m{word}:\x1b[0m ")
    else:
        _write_label(f"{word}: ")
    _talk(text)


@_ends_silently
def _write_label(label: str) -> None:
    sys.stderr.write(label)


class Output:
    """What one command writes, as the user asked for it: for people, as JSON, or as bare ids."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet

    def line(self, text: str) -> None:
        """Write one line of data to stdout."""
        _print(text, sys.stdout)

    def text(self, text: str) -> None:
        """Write one line of data that others had a hand in; control characters are made visible."""
        _print(printable(text), sys.stdout)

    def lines(self, texts: Iterable[str]) -> None:
        """Write lines of data; nothing at all where there are none."""
        if joined := "\n".join(map(printable, texts)):
            _print(joined, sys.stdout)

    def flush(self) -> None:
        """Let whoever reads stdout have what was written so far."""
        _write_bytes(b"")

    def raw(self, data: bytes) -> None:
        """Write bytes to stdout as they are."""
        _write_bytes(data)

    def json(self, value: Any) -> None:
        """Write one JSON document to stdout."""
        _print(encode_json(value, indent=2), sys.stdout)

    def say(self, text: str) -> None:
        """Write a remark to stderr, unless asked to be quiet."""
        if not self.quiet:
            _talk(text)

    def warn(self, text: str) -> None:
        """Write `warning:` to stderr, quiet or not: it is about what the user asked for."""
        _talk_labelled("warning", "33", text)

    def error(self, message: str, hint: str = "") -> None:
        """Write `error:` and `hint:` to stderr."""
        show_error(message, hint)

    def ask(self, question: str) -> bool:
        """Ask yes or no on a terminal; no without asking where there is none."""
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            return False
        sys.stderr.write(f"{question} [y/N] ")
        sys.stderr.flush()
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def table(self, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
        """Draw a table on stdout: fitted to the width of a terminal, plain and complete elsewhere."""
        if not sys.stdout.isatty():
            _print(plain_table(columns, rows), sys.stdout)
            return
        show_renderable(rich_table(columns, rows))

    def comparison(self, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
        """Draw a table of which nothing may be cut: on a terminal that is too narrow it is turned."""
        width = make_console(sys.stdout).width
        if sys.stdout.isatty():
            columns, rows = fit_table(columns, rows, width)
        if sys.stdout.isatty() and _width_of(columns, rows) <= width:
            from rich.text import Text

            show_renderable(rich_table(columns, [list(map(Text, row)) for row in rows]))  # no word of it is a state
        else:
            _print(plain_table(columns, rows), sys.stdout)

    def pairs(self, rows: Sequence[tuple[str, str]]) -> None:
        """Write name and value, one pair a line, values aligned; further lines of a value are indented to it."""
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            first, *more = value.split("\n")
            self.line(f"{name.ljust(width)}  {printable(first)}".rstrip())
            for line in more:
                self.line(f"{' ' * width}  {printable(line)}")


def make_console(stream: TextIO) -> Console:
    """Make a rich console; NO_COLOR is respected by rich itself."""
    from rich.console import Console

    return Console(file=stream, highlight=False, width=None if stream.isatty() else shutil.get_terminal_size().columns)


def show_renderable(renderable: Any) -> None:
    """Draw something of rich on stdout."""
    console = make_console(sys.stdout)
    with console.capture() as drawn:  # rich has its own mind about pipes that are closed
        console.print(renderable)
    _print(drawn.get().removesuffix("\n"), sys.stdout)


def rich_table(columns: Sequence[Column], rows: Sequence[Sequence[Any]]) -> Table:
    """Build a rich table without a frame. Cells are texts or anything that rich can draw.

    Where space is short, the columns marked `fold` give way, the widest first, and end in an ellipsis.
    """
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        # For rich a column that must not wrap is one that must not shrink; the cells themselves see to one line.
        table.add_column(column.title, justify="right" if column.right else "left", no_wrap=not column.fold)
    for row in rows:
        table.add_row(*(_cell(value) if isinstance(value, str) else value for value in row))
    return table


def _cell(value: str) -> Text:
    from rich.text import Text

    text = printable(value)
    return Text(text, style=STYLES.get(text.partition(" ")[0], ""), no_wrap=True, overflow="ellipsis")
