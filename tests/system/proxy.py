"""A TCP proxy whose connections can be dropped, or muted: alive, and carrying nothing."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from types import TracebackType
from typing import Self

READ_BYTES = 65536


class Proxy:
    """Carries connections to `target` ("host:port") in a thread of its own. A context manager."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._carries = asyncio.Event()
        self._carries.set()
        self.address = ""

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        host, port = self._server.sockets[0].getsockname()
        self.address = f"{host}:{port}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def drop(self) -> None:
        """End all connections at once, in both directions."""
        self._loop.call_soon_threadsafe(self._abort)

    def mute(self) -> None:
        """Carry nothing more, on old connections and on new ones, which are still accepted."""
        self._loop.call_soon_threadsafe(self._carries.clear)

    def unmute(self) -> None:
        """Carry what has gathered, and all else."""
        self._loop.call_soon_threadsafe(self._carries.set)

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._carry, "127.0.0.1", 0)

    async def _close(self) -> None:
        self._server.close()
        self._carries.set()
        self._abort()
        for pump in list(self._pumps):
            pump.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await pump

    def _abort(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pump = asyncio.current_task()
        assert pump is not None
        self._pumps.add(pump)
        self._writers.add(writer)
        try:
            await self._join(reader, writer)
        except OSError:  # nobody is at the target
            writer.transport.abort()
        finally:
            self._writers.discard(writer)
            self._pumps.discard(pump)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self._target.rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        self._writers.add(far_writer)
        try:
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        finally:
            self._writers.discard(far_writer)
            far_writer.transport.abort()
            writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one direction until its end; then end the other one, as the two ends of a connection do."""
        with contextlib.suppress(OSError):
            while data := await reader.read(READ_BYTES):
                await self._carries.wait()
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError):
            await writer.drain()
        writer.close()
