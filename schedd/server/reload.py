"""Reading the settings again while the daemon runs: what may change does, at once and as a whole.

A file is parsed and checked before anything is touched, so that one that is wrong changes nothing. What can only count
at a start is named, and named again by each reload until there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from typing import Any, TypeVar

import anyio
import msgspec
from msgspec import Struct, structs

from schedd.assembly import engine_settings
from schedd.config import PolicySettings, Settings
from schedd.core import events as ev
from schedd.core.model import SECOND
from schedd.errors import ConfigError
from schedd.journal.store import Journal, Retention
from schedd.log import Log, set_level
from schedd.server.ports import Reloaded
from schedd.server.service import Service

log = Log("schedd.server")

Read = TypeVar("Read")

#: Keys that count at a start only: sockets that listen are open, and the journal has one file.
AT_START = frozenset(
    {
        "server.listen",
        "server.socket",
        "server.socket_mode",
        "server.insecure",
        "auth.required",
        "journal.enabled",
        "journal.path",
        "journal.durability",
        "metrics.listen",
        "metrics.insecure",
        "log.format",
    }
)
#: Between two looks whether a policy has taken over all that waits.
TAKING_OVER_S = 0.01
#: Tables that are of no interest to the daemon.
OF_OTHERS = ("worker.",)


class Reloader:
    """Has the settings in use, and puts others in their place.

    load: reads the file again, with what the command line adds. prepare: reads the other files that settings name,
    and returns what lets them count. check: looks at what only counts at a start, so that the next one does not fail
    for it. All raise ConfigError, and may take a while.
    """

    def __init__(
        self,
        settings: Settings,
        service: Service,
        load: Callable[[], Settings],
        prepare: Callable[[Settings], Callable[[], None]] = lambda settings: lambda: None,
        check: Callable[[Settings], None] = lambda settings: None,
    ) -> None:
        self.settings = settings
        self.load = load
        self._prepare = prepare
        self._check = check
        self._service = service
        #: Set where there is a journal.
        self.journal: Journal | None = None

    @staticmethod
    async def _in_thread(read: Callable[[], Read]) -> Read:
        """Read files; may take a while. Raises ConfigError, whatever is wrong with them."""
        try:
            return await anyio.to_thread.run_sync(read)
        except ConfigError:
            raise
        except Exception as error:  # nesting without end, a package that cannot be imported, no thread to be had
            raise ConfigError(f"the settings cannot be read: {error or type(error).__name__}") from error

    async def reload(self) -> Reloaded | ConfigError:
        """Read the file and let it count; returns when it does, and a new policy has taken over all that waits."""
        try:
            wanted = await self._in_thread(self.load)
            await self._in_thread(lambda: self._check(wanted))
            others = await self._in_thread(lambda: self._prepare(self._possible(wanted)))
            outcome = self.apply(wanted)
            others()
        except ConfigError as error:
            log.error("reload_failed", error=error.message, hint=error.hint, effect="the settings are as before")
            return error
        counts = anyio.Event()
        self._service.loop.ask(lambda: self._tell(counts))
        await counts.wait()
        restart = ",".join(outcome.needs_restart) or None
        write = log.warning if restart else log.info
        write("reloaded", changed="; ".join(outcome.changed) or "nothing", needs_restart=restart)
        return outcome

    def _tell(self, counts: anyio.Event) -> None:
        """Tell when a new policy has taken over; what is asked of the loop again at once would hold it up."""
        if self._service.engine.is_taking_over:
            self._service.reactor.call_later(TAKING_OVER_S, self._tell, counts)
        else:
            counts.set()

    def _possible(self, wanted: Settings) -> Settings:
        """What was wanted, but for what counts at a start only: TLS can be renewed, not begun or ended."""
        new = _without(self.settings, wanted)
        if wanted.tls.is_on is not self.settings.tls.is_on:
            new = structs.replace(new, tls=self.settings.tls)
        return new

    def apply(self, wanted: Settings) -> Reloaded:
        """Let other settings count, as far as they can without a restart. Raises ConfigError, with nothing changed."""
        old = self.settings
        differences = [each for each in _differences(old, wanted) if not each[0].startswith(OF_OTHERS)]
        new = self._possible(wanted)
        swapped = _of_policy(old.policy) != _of_policy(new.policy)
        policies = _built(new.policy) if swapped else None
        self.settings = new
        self._service.use(new)
        if engine_settings(new) != engine_settings(old):
            self._service.loop.post(ev.SettingsChanged(engine_settings(new)))
        if policies is not None:
            self._service.loop.post(ev.PolicyReplaced(*policies))
        if new.heartbeat != old.heartbeat:
            self._service.loop.ask(self._service.set_pace)
        if self.journal is not None:
            self.journal.keep(retention_of(new))
        set_level(new.log.level)
        at_start = {key for key, _, _ in _differences(new, wanted)}
        changed = [f"{key} = {_told(b)} (was {_told(a)})" for key, a, b in differences if key not in at_start]
        return Reloaded(changed, [key for key, _, _ in differences if key in at_start])


def retention_of(settings: Settings) -> Retention:
    """What the journal keeps, in its units."""
    journal = settings.journal
    return Retention(int(journal.keep_days * 86400 * SECOND), int(journal.keep_mb * 1024 * 1024))


def _without(old: Settings, wanted: Settings, at_start: Set[str] = AT_START) -> Settings:
    """What was wanted, but for the keys that count at a start only."""
    tables: dict[str, Any] = {}
    for key in at_start:
        table, _, name = key.partition(".")
        tables[table] = structs.replace(
            tables.get(table, getattr(wanted, table)), **{name: getattr(getattr(old, table), name)}
        )
    return structs.replace(wanted, **tables)


def _built(policy: PolicySettings) -> tuple[Any, Any]:
    try:
        return policy.build(), policy.build_shadow()
    except Exception as error:  # whatever another distribution may raise
        raise ConfigError(f"policy.{policy.name}: {error or type(error).__name__}") from error


def _of_policy(policy: PolicySettings) -> tuple[Any, ...]:
    """What makes a policy and its shadow what they are; tables of others do not."""
    shadow = policy.shadow
    return policy.name, getattr(policy, policy.name), shadow, getattr(policy, shadow) if shadow else None


def _differences(old: Struct, new: Struct, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (key, old value, new value) of what differs, in the order of the file. None: there is no such table."""
    for name in dict.fromkeys((*new.__struct_fields__, *old.__struct_fields__)):
        before, after, key = getattr(old, name, None), getattr(new, name, None), f"{path}{name}"
        if isinstance(before, Struct) and isinstance(after, Struct):
            yield from _differences(before, after, f"{key}.")
        elif before != after and not isinstance(before or after, Struct):
            yield key, before, after


def _told(value: Any) -> str:
    return msgspec.json.encode(value).decode()
