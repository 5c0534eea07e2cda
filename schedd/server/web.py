"""What the daemon answers over HTTP. Imported where it is to: the libraries take longer to load than all else."""

from __future__ import annotations

from collections.abc import Callable

from schedd.server.http import Answer, Site
from schedd.server.meter import Meter
from schedd.server.metrics import CONTENT_TYPE, Metrics
from schedd.server.ports import Clock
from schedd.server.service import Service


class Web:
    """The pages of a daemon, and what is counted for them from now on. `ill`: what only a restart would mend, or ""."""

    def __init__(self, service: Service, clock: Clock, ill: Callable[[], str]) -> None:
        meter = service.meter = Meter(service.started_ns)
        meter.measure(service.engine, clock)
        self.metrics = Metrics(service, meter)
        self._service = service
        self._ill = ill
        self.site = Site({"/metrics": self._metrics, "/healthz": self._health, "/readyz": self._readiness})

    async def _metrics(self) -> Answer:
        return Answer(200, await self.metrics.text(), CONTENT_TYPE)

    async def _health(self) -> Answer:
        """That there is an answer at all says that the loop runs."""
        return _verdict(self._ill())

    async def _readiness(self) -> Answer:
        return _verdict(self._service.not_ready)


def _verdict(trouble: str) -> Answer:
    return Answer(503, f"{trouble}\n".encode()) if trouble else Answer(200, b"ok\n")
