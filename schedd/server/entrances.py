"""Where peers come in, and what they have to show there: sockets, TLS and tokens, read at the start and at a reload."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable

from msgspec import Struct, structs

from schedd.address import Address
from schedd.config import Settings, asks_token, check_exposure
from schedd.log import Log
from schedd.server import inherited
from schedd.server.access import Access, Door
from schedd.server.doors import PlainDoor, TlsDoor
from schedd.server.service import Service
from schedd.server.tokens import load_tokens, tokens_path
from schedd.server.users import make_access
from schedd.tls import server_context

log = Log("schedd.server")

#: Connections that wait to be accepted; a whole cluster comes back at once after a restart.
BACKLOG = 4096


class Secrets(Struct, frozen=True):
    """What the files of [auth] and [tls] say. tls: what TLS listens with, and what proofs are bound to."""

    access: Access
    tls: tuple[ssl.SSLContext, bytes] | None
    asks_certificate: bool


def read_secrets(settings: Settings) -> Secrets:
    """Read tokens, users and certificates; may take a while. Raises ConfigError."""
    access = make_access(settings.auth)
    access.tokens = load_tokens(tokens_path(settings.auth.tokens))
    files = settings.tls
    tls = server_context(files.cert, files.key, files.client_ca) if files.is_on else None
    return Secrets(access, tls, bool(files.client_ca))


class Entrances:
    """The sockets that a service listens on."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._plain_doors: list[PlainDoor] = []
        self._tls_doors: list[TlsDoor] = []

    def prepare(self, settings: Settings) -> Callable[[], None]:
        """Read the secrets again; what is returned lets them count. Raises ConfigError, with nothing changed."""
        secrets = read_secrets(settings)
        return lambda: self.use(secrets)

    def use(self, secrets: Secrets) -> None:
        """Let these count; who came with a token that is not valid any more is sent away."""
        service = self._service
        service.access.use(secrets.access)
        closed = service.check_tokens()
        is_renewed = secrets.tls is not None and bool(self._tls_doors)
        for tls in self._tls_doors if secrets.tls is not None else ():
            tls.renew(*secrets.tls, asks_certificate=secrets.asks_certificate)  # type: ignore[misc]
        log.info("secrets_read", tokens=len(secrets.access.tokens), closed=closed, tls=is_renewed)

    def open(self, listening: socket.socket, settings: Settings, secrets: Secrets) -> None:
        """Serve who comes at a bound socket. Raises ConfigError where others may reach it and must not."""
        service, address = self._service, inherited.address_of(listening)
        check_exposure(settings, address)
        door = Door(bool(address.path), not address.path and asks_token(settings, address))
        if secrets.tls is not None and not address.path:
            context, binding = secrets.tls
            door = structs.replace(door, binding=binding, asks_certificate=secrets.asks_certificate)
            self._tls_doors.append(TlsDoor(service, listening, BACKLOG, context, door))
        else:
            self._plain_doors.append(PlainDoor(service, listening, BACKLOG, door))
        if address.path:
            log.info("listening", address=address)
        else:
            _warn(settings, address, door, len(secrets.access.tokens))

    def close(self) -> None:
        """Let nobody in any more."""
        for door in self._plain_doors:
            door.close()
        for tls in self._tls_doors:
            tls.close()


def _warn(settings: Settings, address: Address, door: Door, tokens: int) -> None:
    """Say what an operator should know about who may get in."""
    missing = [what for what, there in (("TLS", settings.tls.is_on), ("tokens", door.asks_token)) if not there]
    if not address.is_loopback and missing:
        log.warning("open_to_the_network", address=address, without=" ".join(missing), reason="server.insecure = true")
    elif door.asks_token and not tokens:
        log.warning("no_tokens", address=address, hint="make some with `schedd token create`, then reload the daemon")
    elif settings.server.socket and not door.asks_token:
        hint = "set auth.required = true, or every user of this machine is an administrator there"
        log.warning("open_to_this_machine", address=address, hint=hint)
