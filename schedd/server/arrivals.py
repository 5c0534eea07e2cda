"""Connections that have not proven who they are yet: how many there may be, in all and from one address. Pure."""

from __future__ import annotations

import ipaddress

from schedd.log import Log

log = Log("schedd.server")

#: Who has one address of an IPv6 network has all of them.
_IPV6_PREFIX = 64


class Arrival:
    """One such connection, counted until it leaves this state."""

    def __init__(self, arrivals: Arrivals, address: str) -> None:
        self._arrivals: Arrivals | None = arrivals
        self._address = address

    def leave(self) -> None:
        """It is welcome, or gone. Once counts."""
        arrivals, self._arrivals = self._arrivals, None
        if arrivals is not None:
            arrivals._leave(self._address)


class Arrivals:
    """Counts them. Where there are too many, the newest is turned away: those that are about to prove it go on."""

    def __init__(self, total_max: int = 0, per_address_max: int = 0) -> None:
        self.bound(total_max, per_address_max)
        self._by_address: dict[str, int] = {}
        self._total = 0
        #: Turned away since there were none at all the last time.
        self._refused = 0

    def bound(self, total_max: int, per_address_max: int) -> None:
        """Let in so many from now on."""
        self._total_max, self._per_address_max = total_max, per_address_max

    def __len__(self) -> int:
        return self._total

    def enter(self, host: str) -> Arrival | None:
        """Count a connection from this address; None: there are too many."""
        address = _network(host)
        count = self._by_address.get(address, 0)
        if self._total >= self._total_max or count >= self._per_address_max:
            self._refused += 1
            if self._refused.bit_count() == 1:  # the first, the second, the fourth …: a flood must not flood the log
                log.warning(
                    "too_many_unproven", address=address, of_it=count, in_all=self._total, refused=self._refused
                )
            return None
        self._by_address[address] = count + 1
        self._total += 1
        return Arrival(self, address)

    def _leave(self, address: str) -> None:
        self._total -= 1
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]
        if not self._total:
            self._refused = 0


def _network(host: str) -> str:
    """What counts as one address."""
    if ":" not in host:
        return host
    try:
        found = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.IPv6Network((found, _IPV6_PREFIX), strict=False))
