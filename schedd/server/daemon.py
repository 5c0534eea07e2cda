"""The life of the daemon: start, serve, stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import faulthandler
import gc
import os
import random
import resource
import signal
import socket
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import uvloop

import schedd
from schedd.address import Address, journal_path, parse_address
from schedd.assembly import engine_settings, is_compiled
from schedd.config import Settings
from schedd.core.engine import Engine
from schedd.core.model import SECOND
from schedd.core.restore import Recorded
from schedd.errors import ConfigError, JournalError, ScheddError
from schedd.journal.records import draining_of, finished_row
from schedd.journal.store import Journal, Live
from schedd.log import Log, set_up
from schedd.notify import notify
from schedd.server import inherited
from schedd.server.archive import Archive
from schedd.server.checking import check_start
from schedd.server.clock import Clock
from schedd.server.durable import Promises
from schedd.server.entrances import BACKLOG, Entrances, Secrets, read_secrets
from schedd.server.lobby import SILENT_MAX
from schedd.server.ports import Reloaded
from schedd.server.reload import Reloader, retention_of
from schedd.server.service import Service
from schedd.server.spare import give_back
from schedd.server.supervision import Supervision

if TYPE_CHECKING:
    from schedd.server.web import Web

log = Log("schedd.server")

#: Thresholds of the collector of cycles. What a task leaves behind needs none, and a full collection over a million
#: rows takes 100 ms: by itself it never makes one.
COLLECT_THRESHOLDS = (10_000, 50, 1_000_000)
#: Seconds between two full ones, which are left out with more rows than this in the tables.
COLLECT_INTERVAL_S = 60.0
COLLECT_ROWS_MAX = 50_000
#: Seconds between two records of what was learned.
REMEMBER_INTERVAL_S = 60.0
#: Open files beside the connections: sockets that listen and those who are silent there, the loop's own, logs.
FILES_OF_OUR_OWN = 64 + SILENT_MAX


#: Hears what came of a reload.
Hear = Callable[[Reloaded | ConfigError], None]


class ListenError(ScheddError):
    """The address cannot be listened on."""


#: How a start fails, for the service manager: settings do not mend themselves, a port or a disk may.
EXITS: dict[type[ScheddError], int] = {ConfigError: 7, JournalError: 8, ListenError: 9}


def serve(
    settings: Settings,
    *,
    address_file: str | None = None,
    sockets: Sequence[str] = (),
    load: Callable[[], Settings] | None = None,
) -> int:
    """Run the daemon until a signal stops it; returns the exit status: 0 after an orderly stop, else see `EXITS`.

    sockets: paths of Unix sockets to listen on beside what the settings say. load: reads the settings again; None: they
    are of no file.
    """
    set_up(settings.log.level, settings.log.format)
    faulthandler.enable()  # a daemon that its watchdog ends says where it was
    gc.set_threshold(*COLLECT_THRESHOLDS)
    _raise_file_limit(settings.server.connections_max)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_run(settings, address_file, sockets, load))
    except (ListenError, ConfigError, JournalError) as error:
        log.error("cannot_start", error=error.message, hint=error.hint)
        notify(f"STATUS=cannot start: {error.message}")
        return EXITS[type(error)]


async def _run(
    settings: Settings, address_file: str | None, sockets: Sequence[str], load: Callable[[], Settings] | None
) -> int:
    return await Daemon(settings, address_file, sockets, load).run()


def _raise_file_limit(connections_max: int) -> None:
    """Take all the open files that we may have: each connection is one, and the usual soft limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    if soft != resource.RLIM_INFINITY and soft < connections_max + FILES_OF_OUR_OWN:
        log.warning(
            "few_open_files", limit=soft, connections_max=connections_max, hint="raise LimitNOFILE= or ulimit -n"
        )


class Daemon:
    """One daemon, on the running loop. `run` returns the exit status."""

    def __init__(
        self,
        settings: Settings,
        address_file: str | None = None,
        sockets: Sequence[str] = (),
        load: Callable[[], Settings] | None = None,
    ) -> None:
        self._settings = settings
        self._sockets = [path for path in dict.fromkeys([settings.server.socket, *sockets]) if path]
        self._load = load
        self._reloading = anyio.Lock()
        self._inherited = inherited.take()
        self._address_file = Path(address_file) if address_file else None
        self._crash: BaseException | None = None
        #: Why it cannot start.
        self._refusal: ScheddError | None = None
        self._journal: Journal | None = None
        self._web: Web | None = None
        loop = asyncio.get_running_loop()
        self._call_soon, self._call_later = loop.call_soon_threadsafe, loop.call_later
        self._done = anyio.Event()
        self._entrances: Entrances | None = None
        self._servers: list[asyncio.AbstractServer] = []
        #: What we put into the file system, and which file it was.
        self._made: list[tuple[Path, tuple[int, int]]] = []

    async def run(self) -> int:
        clock = Clock()
        settings = self._settings
        policy = settings.policy
        engine = Engine(policy.build(), engine_settings(settings), random.Random(), policy.build_shadow())
        reactor = asyncio.get_running_loop()
        service = Service(engine, clock, settings, self._crashed, reactor, random.Random())
        supervision = Supervision(service, reactor, lambda: self._journal is not None and self._journal.is_alive)
        entrances = self._entrances = Entrances(service)
        supervision.starting()
        service.lag.start()
        self._collect(engine)
        try:
            # Signals first: whoever learns that we listen may want us to stop, and a start may take seconds.
            with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
                async with anyio.create_task_group() as group:
                    if self._load is not None:
                        reloader = Reloader(settings, service, self._load, entrances.prepare, check_start)
                        reload = partial(self._reload, reloader, supervision)

                        def start_reload(hear: Hear) -> None:
                            group.start_soon(reload, hear)

                        service.reload = start_reload
                    group.start_soon(self._obey_signals, service, supervision, signals)
                    group.start_soon(give_back)
                    group.start_soon(self._start, engine, service, clock, supervision, entrances)
                    await self._done.wait()
                    group.cancel_scope.cancel()
        finally:
            service.loop.stop()
            self._close_doors()
            if self._web is not None:
                self._web.site.close()
            if self._journal is not None:
                if self._journal is service.promises.journal:  # the start was through
                    self._journal.remember(engine.learned())
                if not self._journal.close():
                    log.error("journal_not_closed", effect="what was not acknowledged may be lost")
            self._clean_up()
        if self._refusal is not None:
            raise self._refusal
        if self._crash is not None:
            log.error("daemon_failed", error=repr(self._crash))
            raise self._crash
        log.info("stopped", unfinished=engine.tasks.unfinished_count)
        return 0

    def _collect(self, engine: Engine) -> None:
        """Look for cycles in what has grown old, where that takes no time; the next time in a minute."""
        if len(engine.tasks) <= COLLECT_ROWS_MAX:
            gc.collect()
        self._call_later(COLLECT_INTERVAL_S, self._collect, engine)

    async def _start(
        self, engine: Engine, service: Service, clock: Clock, supervision: Supervision, entrances: Entrances
    ) -> None:
        """Start from the journal, then listen. A refusal to start ends the daemon."""
        try:
            if self._address_file is not None:
                _check_folder(self._address_file)
            secrets = await anyio.to_thread.run_sync(read_secrets, self._settings)
            service.access.use(secrets.access)
            web = await self._show(service, clock) if self._settings.metrics.listen else None
            if self._settings.journal.enabled:
                await self._restore(engine, service, clock)
                if web is not None:
                    web.metrics.journal = self._journal
            else:
                log.warning("no_journal", effect="what is unfinished when the daemon stops is lost")
            self._listen(service, entrances, secrets)
            supervision.ready()
        except (ListenError, ConfigError, JournalError) as error:
            self._refusal = error
            self._done.set()
        except Exception as error:
            self._crashed(error)

    async def _restore(self, engine: Engine, service: Service, clock: Clock) -> None:
        """Open the journal and start from what it has, in steps that leave the loop to others. Raises JournalError."""
        settings = self._settings.journal
        path = journal_path(settings.path)
        # Bringing a log of the last daemon into the file may take a while.
        journal = self._journal = await anyio.to_thread.run_sync(self._open_journal, path, service.promises)
        log.info("restoring", path=path)
        gc.disable()  # a million rows that are here to stay need not be looked at while they are made,
        live = Live()
        limits = self._settings.limits
        await _through(journal.loading(live, limits.finished_keep_count, limits.keyed_keep_count))
        workers = [worker.worker_id for worker in live.workers]
        grace_ns = int(settings.adoption_grace_s * SECOND)
        recorded = Recorded(
            batches=_consumed(live.batches),
            ended=live.ended,
            changes=_consumed(live.changes),
            finished=[finished_row(record) for record in live.finished],
            workers=workers,
            next_id=live.next_id,
            draining=draining_of(live.workers),
            verdicts=live.verdicts,
            submits=live.submits,
            epoch=journal.epoch,
        )
        await _through(engine.restoring(recorded, clock.now_ns(), grace_ns))
        engine.recall(live.learned)
        service.remember(workers)
        service.loop.wake()  # what a restart leaves to be done, and the deadlines
        journal.start()
        service.promises.journal = journal
        service.past.archive = Archive(path)
        unfinished = engine.tasks.unfinished_count
        self._remember(engine, journal)
        gc.freeze()  # nor by every collection ever after
        gc.enable()
        log.info("journal_open", path=path, durability=settings.durability, unfinished=unfinished, workers=len(workers))

    def _remember(self, engine: Engine, journal: Journal, written: int = 0) -> None:
        """Have what was learned written down, and again in a minute, and at the stop."""
        attempts = sum(engine.counters.by_cause.values())
        if attempts != written:
            journal.remember(engine.learned())
        self._call_later(REMEMBER_INTERVAL_S, self._remember, engine, journal, attempts)

    def _open_journal(self, path: Path, promises: Promises) -> Journal:
        """In a thread: open the journal. Raises JournalError."""
        return Journal(
            path,
            self._settings.journal.durability,
            retention_of(self._settings),
            committed=promises.committed,
            failing=promises.failing,
            crashed=self._crashed_in_thread,
        )

    def _listen(self, service: Service, entrances: Entrances, secrets: Secrets) -> None:
        main = self._main_socket()
        local = [self._bind(parse_address(f"unix:{path}")) for path in self._sockets]
        for listening in dict.fromkeys([main, *self._inherited.given, *local]):
            entrances.open(listening, self._settings, secrets)
        address = service.address = inherited.address_of(main)
        if self._address_file is not None:
            _write_whole(self._address_file, f"{address}\n")
            self._has_made(self._address_file)
        core = {"core": "compiled"} if is_compiled() else {}
        log.info("listening", address=address, policy=self._settings.policy.name, version=schedd.__version__, **core)

    async def _show(self, service: Service, clock: Clock) -> Web:
        """Answer over HTTP, from before the restart on: that it is not ready is what one wants to see there."""
        from schedd.server.web import Web

        web = self._web = Web(service, clock, lambda: self._ill(service))
        address = parse_address(self._settings.metrics.listen)
        try:
            bound = self._bind(address)
        except ListenError as error:
            raise ListenError(f"metrics: {error.message}", "choose another [metrics] listen") from error
        self._servers.append(await asyncio.get_running_loop().create_server(web.site, sock=bound))
        log.info("metrics", address=address if address.path else Address(*bound.getsockname()[:2]))
        return web

    def _ill(self, service: Service) -> str:
        """What only a restart would mend; "": nothing."""
        journal = self._journal
        is_dead = journal is not None and journal is service.promises.journal and not journal.is_alive
        return "the journal's writer has ended" if is_dead else ""

    def _main_socket(self) -> socket.socket:
        """What listens for `[server] listen`: that of a socket unit, else the one from our last start, else a new one.

        A new one is given to the service manager to keep. Raises ListenError.
        """
        address, found = parse_address(self._settings.server.listen), self._inherited
        given = next((each for each in found.given if not inherited.is_local(each)), None)
        kept = next((each for each in found.kept if inherited.is_at(each, address)), None)
        if given is not None and not inherited.is_at(given, address):
            told = inherited.address_of(given)
            log.warning("listen_ignored", listen=address, address=told, reason="the socket unit says where to listen")
        for each in found.kept:
            if given is not None or each is not kept:
                each.close()
        if found.kept and (kept is None or given is not None):
            inherited.forget()
        if given is not None or kept is not None:
            return given or kept  # type: ignore[return-value]
        bound = self._bind(address)
        if not address.path:
            bound.listen(BACKLOG)
            inherited.keep(bound)
        return bound

    async def _reload(self, reloader: Reloader, supervision: Supervision, hear: Hear) -> None:
        async with self._reloading:
            reloader.journal = self._journal
            supervision.reloading()
            outcome = await reloader.reload()
            self._settings = reloader.settings
            supervision.reloaded(outcome)
        hear(outcome)

    async def _obey_signals(
        self, service: Service, supervision: Supervision, signals: AsyncIterator[signal.Signals]
    ) -> None:
        async for number in signals:
            if number == signal.SIGHUP:
                self._reload_on_signal(service)
                continue
            if service.stopping:
                log.warning("stop_forced", signal=number.name)
                break
            service.stopping = True
            log.info("stopping", signal=number.name, unfinished=service.engine.tasks.unfinished_count)
            supervision.stopping(self._settings.server.stop_timeout_s)
            asyncio.get_running_loop().call_soon(self._begin_stop, service)
        self._done.set()

    @staticmethod
    def _reload_on_signal(service: Service) -> None:
        if service.reload is None:
            log.warning("reload_failed", error="this daemon has no settings file", hint="start it with --config FILE")
        elif service.address is None:
            log.warning("reload_ignored", reason="the daemon is starting, and has just read its settings")
        else:
            service.reload(lambda outcome: None)

    def _begin_stop(self, service: Service) -> None:
        """Close what listens and every connection; done when the last has got what was written for it."""
        self._close_doors()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.server.stop_timeout_s

        def look() -> None:
            if service.promises.pending_count and loop.time() < deadline:
                loop.call_later(0.005, look)
                return
            service.close_all()
            if not service.connection_count or loop.time() > deadline:
                self._done.set()
            else:
                loop.call_later(0.02, look)

        look()

    def _close_doors(self) -> None:
        if self._entrances is not None:
            self._entrances.close()
        for server in self._servers:
            server.close()

    def _crashed(self, error: BaseException) -> None:
        self._crash = error
        self._done.set()

    def _crashed_in_thread(self, error: BaseException) -> None:
        self._call_soon(self._crashed, error)

    def _bind(self, address: Address) -> socket.socket:
        bound = _bind(address)
        if address.path:
            # Before it listens: until then nobody gets in.
            Path(address.path).chmod(self._settings.server.socket_mode)
            self._has_made(Path(address.path))
        return bound

    def _has_made(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):  # whoever waited for it has removed it already
            self._made.append((path, _identity(path)))

    def _clean_up(self) -> None:
        """Remove what we made; what is there by now in its place belongs to somebody else."""
        for path, identity in self._made:
            with contextlib.suppress(OSError):
                if _identity(path) == identity:
                    path.unlink()


def _identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


def _consumed(rows: list[Any]) -> Iterator[Any]:
    """Take a list apart from its first on, so that a million rows need not go at once."""
    rows.reverse()
    while rows:
        yield rows.pop()


async def _through(steps: Iterator[None]) -> None:
    """Go through steps, with the loop's other work in between."""
    for _ in steps:
        await asyncio.sleep(0)


def _bind(address: Address) -> socket.socket:
    """A bound socket. Raises ListenError; a Unix socket that nobody answers on is taken over."""
    try:
        if address.path:
            return _bind_unix(address.path)
        info = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(info[0], info[1], info[2])
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(info[4])
        except OSError:
            bound.close()
            raise
        return bound
    except OSError as error:
        hint = ""
        if error.errno == errno.EADDRINUSE:
            hint = "is a daemon running there already? see `schedd stats`, or choose another with --listen"
        raise ListenError(f"cannot listen on {address}: {error.strerror or error}", hint) from error


def _bind_unix(path: str) -> socket.socket:
    Path(path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except FileNotFoundError:
            pass
        except ConnectionRefusedError:  # whatever it is that nobody listens on: it may be somebody's file
            if not stat.S_ISSOCK(Path(path).lstat().st_mode):
                raise OSError(errno.EEXIST, "something else than a socket is there already") from None
            Path(path).unlink(missing_ok=True)
        else:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    bound.bind(path)
    return bound


def _check_folder(path: Path) -> None:
    """Look before a start that may take long whether a file can be written there. Raises ConfigError."""
    if not os.access(path.parent, os.W_OK | os.X_OK):
        reason = "no file can be made in it" if path.parent.is_dir() else "there is no such folder"
        raise ConfigError(f"the address cannot be written to {path}: {path.parent}: {reason}")


def _write_whole(path: Path, text: str) -> None:
    """Write a file so that whoever waits for it never reads a part. Raises ConfigError."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise ConfigError(f"the address cannot be written to {path}: {error.strerror}") from error
