"""`schedd logs`: the output of a task, byte for byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

import click

from schedd.cli.exits import Exit
from schedd.cli.options import TASK_ID, Parsed
from schedd.cli.session import Session, client_command
from schedd.cli.values import ID_MAX, parse_tail

if TYPE_CHECKING:
    from schedd.client.aio import AsyncClient
    from schedd.wire.messages import LogData

#: One piece of output travels in one frame; a quarter of a MiB keeps frames small and trips few.
PIECE_BYTES = 256 * 1024
#: The worker does not push output; this is how far behind `-f` may be.
FOLLOW_S = 0.3

EXAMPLES = """
schedd logs 5
schedd logs 5 -f
schedd logs 5 --stderr --tail 20
schedd logs 5 --attempt 1 --tail 64k
"""


class _Log:
    """One stream of one attempt, read piece by piece.

    `patient`: while the attempt goes on, a worker that is away is waited for, as after a restart of the daemon.
    """

    def __init__(self, client: AsyncClient, task_id: int, attempt: int, stream: str, *, patient: bool) -> None:
        self._client = client
        self._patient = patient
        self._task_id = task_id
        self._stream = stream
        #: 0 until the first answer says which attempt is the newest: a retry must not mix two outputs.
        self._attempt = attempt
        self.size = 0
        self.done = False

    async def read(self, offset: int, limit: int) -> bytes:
        piece = await self._read(offset, limit)
        self._attempt = piece.attempt or self._attempt
        self.size, self.done = piece.size, piece.done
        return piece.data

    async def _read(self, offset: int, limit: int) -> LogData:
        from schedd.errors import RequestRefused
        from schedd.wire.messages import WORKER_AWAY

        while True:
            try:
                return await self._client.read_log(
                    self._task_id, attempt=self._attempt, stream=self._stream, offset=offset, limit=limit
                )
            except RequestRefused as error:
                if error.code != WORKER_AWAY or not self._patient:
                    raise
                if not await self._goes_on():
                    ended = f"attempt {self._attempt} has ended; " if self._attempt else ""
                    raise RequestRefused(f"{ended}{error.message}", error.hint, error.code) from None
            await asyncio.sleep(FOLLOW_S)

    async def _goes_on(self) -> bool:
        """Whether more may come from the attempt; one that was lost has ended though its task has not."""
        from schedd.core.model import TaskId
        from schedd.wire.messages import Selection

        for task, detail in await self._client.show(Selection(ids=[TaskId(self._task_id)], unfinished=True)):
            ended = any(record.attempt == self._attempt for record in detail.attempts)
            return not self._attempt or not (ended or task.attempt > self._attempt)
        return False

    async def start_of_tail(self, lines: int) -> int:
        """Find where the last `lines` lines begin, reading backwards piece by piece."""
        await self.read(0, 1)
        end, wanted = self.size, lines + 1
        last = self.size
        while end > 0 and lines:
            start = max(0, end - PIECE_BYTES)
            piece = await self._range(start, end)
            if end == last and piece.endswith(b"\n"):
                piece = piece[:-1]  # the end of the last line, not the beginning of another
            count = piece.count(b"\n")
            if count >= wanted - 1:
                for _ in range(wanted - 1):
                    piece = piece[: piece.rindex(b"\n")]
                return start + len(piece) + 1
            wanted -= count
            end = start
        return end if lines else self.size

    async def _range(self, start: int, end: int) -> bytes:
        data = b""
        while start + len(data) < end:
            piece = await self.read(start + len(data), end - start - len(data))
            if not piece:
                break
            data += piece
        return data


@client_command("logs", examples=EXAMPLES)
@click.argument("task_id", type=TASK_ID, metavar="ID")
@click.option("--follow", "-f", is_flag=True, help="Go on until the attempt has ended.")
@click.option("--stdout", "stream", flag_value="stdout", default="stdout", help="What it wrote to stdout (default).")
@click.option("--stderr", "stream", flag_value="stderr", help="What it wrote to stderr.")
@click.option("--attempt", type=click.IntRange(1, ID_MAX), metavar="N", help="Of this attempt. Default: the newest.")
@click.option(
    "--tail", type=Parsed("tail", parse_tail), metavar="N", help="Only the last N lines; Nb, Nk, Nm: the last bytes."
)
async def logs_command(
    session: Session, task_id: int, follow: bool, stream: str, attempt: int | None, tail: tuple[int, bool] | None
) -> Exit:
    """Write the output of a task to stdout, byte for byte. It is read from the worker that has it."""
    async with session.connect() as client:
        log = _Log(client, task_id, attempt or 0, stream, patient=follow)
        if follow:
            await _until_started(session, client, log, task_id)
        offset = await _first_offset(log, tail)
        if session.out.as_json:
            await _write_json(session, log, task_id, stream, offset, follow=follow)
        else:
            await _copy(session, log, offset, follow=follow)
    return Exit.OK


async def _until_started(session: Session, client: AsyncClient, log: _Log, task_id: int) -> None:
    """Wait for the first output there can be. Raises RequestRefused where there will be none."""
    from schedd.core.model import TaskId
    from schedd.errors import RequestRefused
    from schedd.wire.messages import ILLEGAL_STATE, Selection

    is_told = False
    while True:
        try:
            await log.read(0, 1)
            return
        except RequestRefused as error:
            if error.code != ILLEGAL_STATE:
                raise
            if not await client.tasks(Selection(ids=[TaskId(task_id)], unfinished=True)):
                raise
        if not is_told:
            session.out.say(f"task {task_id} has not started yet")
            is_told = True
        await asyncio.sleep(FOLLOW_S)


async def _first_offset(log: _Log, tail: tuple[int, bool] | None) -> int:
    if tail is None:
        return 0
    count, is_bytes = tail
    if not is_bytes:
        return await log.start_of_tail(count)
    await log.read(0, 1)
    return max(0, log.size - count)


async def _copy(session: Session, log: _Log, offset: int, *, follow: bool) -> None:
    async for piece in _pieces(log, offset, follow=follow):
        session.out.raw(piece)


async def _pieces(log: _Log, offset: int, *, follow: bool) -> AsyncGenerator[bytes, None]:
    """Yield the output from `offset` on, as far as there is any; `follow`: until the attempt has ended."""
    while True:
        data = await log.read(offset, PIECE_BYTES)
        if data:
            yield data
            offset += len(data)
        elif log.done or not follow:
            return
        else:
            await asyncio.sleep(FOLLOW_S)


async def _write_json(session: Session, log: _Log, task_id: int, stream: str, offset: int, *, follow: bool) -> None:
    from schedd.cli.views import text_or_base64

    data = b"".join([piece async for piece in _pieces(log, offset, follow=follow)])
    content = text_or_base64(data)
    session.out.json({"id": task_id, "stream": stream, "offset": offset, "done": log.done, "data": content})
