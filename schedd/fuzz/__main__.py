"""`python -m schedd.fuzz TARGET` feeds schedd hostile input, guided by coverage; `--reproduce FILE` does it again.

Needs atheris: pip install 'schedd[fuzz]'. A failure is written to a file with the inputs that lead to it.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import re
import subprocess
import sys
import time
import traceback
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from schedd.fuzz import failures
from schedd.fuzz.targets import TARGETS

#: libFuzzer takes that for no end.
NO_LIMIT = -1
#: Jobs begin with seeds so far apart, since each counts them up with its worlds.
SEEDS_PER_JOB = 1_000_000
LOOK_EVERY_S = 5.0
_COVERAGE = re.compile(rb"cov: (\d+)")


class Running:
    """A process that fuzzes."""

    def __init__(self, options: argparse.Namespace, number: int, folder: Path) -> None:
        self.failure_file = folder / f"{options.target}-{options.seed}-{number}.failure"
        self._count_file = folder / f"count-{number}"
        self._log = folder / f"log-{number}"
        corpus = Path(options.corpus) if options.corpus else folder / "corpus"
        corpus.mkdir(parents=True, exist_ok=True)
        share = max(1, options.inputs // options.jobs) if options.inputs else NO_LIMIT
        script = Path(__file__).with_name("guided.py")
        argv = [sys.executable, "-P", str(script), options.target, str(options.seed + number * SEEDS_PER_JOB)]
        argv += [str(share), str(options.time), str(self._count_file), str(self.failure_file), str(corpus)]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    @property
    def count(self) -> int:
        """Inputs so far."""
        return int.from_bytes(self._count_file.read_bytes(), "big") if self._count_file.exists() else 0

    @property
    def branches(self) -> int:
        """Branches that were taken so far."""
        found = _COVERAGE.findall(self._log.read_bytes())
        return int(found[-1]) if found else 0

    def said(self) -> str:
        """The end of what it wrote."""
        return self._log.read_text(errors="replace")[-3000:]


def main(arguments: list[str] | None = None) -> int:
    """Fuzz. Returns 0 where all went well, 1 where schedd was wrong, 2 where it cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m schedd.fuzz", description=__doc__)
    parser.add_argument("target", nargs="?", choices=TARGETS, default="daemon", help="default: %(default)s")
    parser.add_argument("--inputs", type=int, default=0, help="stop after so many, of all jobs together")
    parser.add_argument("--time", type=int, default=0, metavar="S", help="stop after so many seconds")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: %(default)s)")
    parser.add_argument("--corpus", metavar="FOLDER", help="begin with what is in there, and add what is new")
    parser.add_argument("--failures", metavar="FOLDER", default=".", help="where failures go (default: here)")
    parser.add_argument("--reproduce", metavar="FILE", help="do again what a file of a failure says")
    options = parser.parse_args(arguments)
    if options.reproduce:
        return _reproduce(Path(options.reproduce))
    if importlib.util.find_spec("atheris") is None:
        sys.stderr.write("error: atheris is not installed\nhint: pip install 'schedd[fuzz]'\n")
        return 2
    return _fuzz(options)


def _reproduce(path: Path) -> int:
    try:
        failure = failures.read(path)
    except (OSError, msgspec.DecodeError) as error:
        sys.stderr.write(f"error: {path} cannot be read: {error}\n")
        return 2
    raised = failures.replay(failure)
    if raised is None:
        _say(f"{len(failure.inputs)} inputs, nothing went wrong")
        return 0
    traceback.print_exception(raised, file=sys.stdout)
    for data in failure.inputs:
        _say(f"  {data[:200]!r}")
    return 1


def _fuzz(options: argparse.Namespace) -> int:
    began = time.monotonic()
    with TemporaryDirectory(prefix="schedd-fuzz-") as name:
        jobs = [Running(options, number, Path(name)) for number in range(options.jobs)]
        try:
            while any(job.process.poll() is None for job in jobs):
                _wait(jobs)
                seconds = time.monotonic() - began
                sys.stderr.write(f"\r{_figures(jobs, seconds)} ")
                sys.stderr.flush()
        except KeyboardInterrupt:
            sys.stderr.write("\n")
        finally:
            for job in jobs:
                job.process.kill()
                job.process.wait()
        sys.stderr.write("\n")
        failed = [_keep(job, Path(options.failures)) for job in jobs if job.process.returncode not in (0, -9)]
        figures = _figures(jobs, time.monotonic() - began)
        _say(f"{options.target}: {figures}, {len(failed)} failures, seed {options.seed}")
    return 1 if failed else 0


def _wait(jobs: list[Running]) -> None:
    running = next((job for job in jobs if job.process.poll() is None), None)
    if running is not None:
        try:
            running.process.wait(LOOK_EVERY_S)
        except subprocess.TimeoutExpired:
            return


def _figures(jobs: list[Running], seconds: float) -> str:
    count = sum(job.count for job in jobs)
    branches = max(job.branches for job in jobs)
    return f"{count:,} inputs, {count / seconds:,.0f}/s, {branches:,} branches, {seconds:.0f} s"


def _keep(job: Running, folder: Path) -> Path:
    """Write the least of a failure where the user wants it, and say what it is."""
    _say(job.said())
    kept = folder / job.failure_file.name
    if job.failure_file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        failures.write(kept, failures.shrunk(failures.read(job.failure_file)))
        _say(f"reproduce: python -m schedd.fuzz --reproduce {kept}")
    return kept


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    logging.getLogger("schedd").setLevel(logging.CRITICAL)
    sys.exit(main())
