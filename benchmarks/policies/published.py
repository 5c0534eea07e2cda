"""What the comparisons with published results share: where the data is, and cells that must agree."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct, structs
from rich.console import Console
from rich.table import Table

#: Where the data is unless the command line says otherwise: beside the repository.
DATA = Path(__file__).parents[3] / "shared" / "data"


class Cell(Struct, frozen=True):
    """A value of ours against a published one.

    within: how far it may be off, or below for `at_least`; inf: for information only.
    """

    what: str
    ours: float
    published: float
    within: float
    at_least: bool = False

    @property
    def agrees(self) -> bool:
        slack = 1e-9
        if self.at_least:
            return self.ours >= self.published - self.within - slack
        return abs(self.ours - self.published) <= self.within + slack


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that all comparisons have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("data", nargs="?", type=Path, default=DATA, help="folder of the data (default %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write all cells to this file, - for stdout")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a cell does not agree")
    return parser


def load(path: Path) -> Any:
    """Read published values."""
    return json.loads(path.read_text())


def finish(options: argparse.Namespace, name: str, cells: Sequence[Cell], digits: int) -> int:
    """Show the cells; returns the exit status."""
    console = Console(stderr=options.json == "-", width=None if sys.stdout.isatty() else 120)
    table = Table(title=name, title_justify="left")
    for column in ("what", "ours", "published", "off", "may be off", ""):
        table.add_column(column, justify="left" if column in ("what", "") else "right", no_wrap=True)
    for cell in cells:
        values = [f"{value:,.{digits}f}" for value in (cell.ours, cell.published, cell.ours - cell.published)]
        bound, verdict = f"{'below, ' * cell.at_least}{cell.within:,.{digits}f}", "agrees" if cell.agrees else "DIFFERS"
        table.add_row(cell.what, *values, *(("-", "") if cell.within == math.inf else (bound, verdict)))
    console.print(table)
    if options.json:
        told = [{**structs.asdict(cell), "agrees": cell.agrees} for cell in cells if cell.within < math.inf]
        text = json.dumps({"benchmark": name, "cells": told}, indent=2) + "\n"
        if options.json == "-":
            sys.stdout.write(text)
        else:
            Path(options.json).write_text(text)
    return 1 if options.check and not all(cell.agrees for cell in cells) else 0
