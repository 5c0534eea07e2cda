"""No-op Python calls a second over TLS and with tokens, against the same without either.

Client, daemon and two workers on one machine, so that the crypto of all of them is on the same cores. Every run starts
everything anew and warms it up, and the two take turns, so that a machine that slows down slows down both.
"""

from __future__ import annotations

import contextlib
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from common import Floor, Service, arguments, finish, median, spread, timed

from schedd import authority
from schedd.client.executor import SchedExecutor
from schedd.client.sync import Client
from schedd.credentials import NONE, Credentials
from schedd.server.tokens import changing
from schedd.wire.auth import ID_BYTES, SECRET_BYTES, Role, Token, make_token, verifier_of

RATIO_FLOOR = 0.8
#: Tasks before the clock starts: processes are there, code is loaded, runtimes are known.
WARM_UP = 500
#: Bytes of a large result, and how many tasks have one: some 200 MB through the daemon.
LARGE_BYTES, LARGE_SHARE = 1024 * 1024, 100

#: Tasks a second, and CPU microseconds a task by process.
Measured = tuple[float, dict[str, float]]
#: A service, and what clients show there.
Place = tuple[Service, Credentials]


def noop(value: int) -> int:
    return value


def large(value: int) -> bytes:
    return bytes([value % 256]) * LARGE_BYTES


def check(results: list[int], count: int) -> None:
    if results != list(range(count)):
        raise RuntimeError("the results are wrong")


@contextlib.contextmanager
def plain() -> Iterator[Place]:
    with Service() as service:
        yield service, NONE


@contextlib.contextmanager
def secure() -> Iterator[Place]:
    """A service that speaks TLS and asks for tokens, with an authority of its own."""
    with tempfile.TemporaryDirectory(prefix="schedd-benchmark-tls-") as name:
        folder = Path(name)
        ca = authority.make_authority(folder)
        cert = authority.make_server(folder, ["127.0.0.1"], 1)
        worker, client = (make_token(role, secrets.token_bytes(ID_BYTES + SECRET_BYTES)) for role in ROLES)
        with changing(folder / "tokens.json") as tokens:
            tokens |= {token.id: verifier_of(token, str(token.role)) for token in (worker, client)}
        config = (
            f'[log]\nlevel = "warning"\n[auth]\nrequired = true\ntokens = "{folder}/tokens.json"\n'
            f'[tls]\ncert = "{cert}"\nkey = "{cert.with_suffix(".key")}"\n'
        )
        env = {"SCHEDD_TOKEN_FILE": _write(folder / "worker.token", worker), "SCHEDD_TLS_CA": str(ca)}
        shown = Credentials(client, str(ca))
        with Service(config=config, worker_env=env, credentials=shown) as service:
            yield service, shown


ROLES = (Role.WORKER, Role.ADMIN)


def _write(path: Path, token: Token) -> str:
    path.touch(0o600)
    path.write_text(token.text())
    return str(path)


def with_cpu(service: Service, count: int, run: Callable[[], object]) -> Measured:
    before = service.cpu_seconds()
    with timed() as taken:
        run()
    after = service.cpu_seconds()
    return count / taken[0], {name: (after[name] - before[name]) * 1e6 / count for name in after}


def by_executor(place: Place, count: int) -> Measured:
    service, shown = place
    with SchedExecutor(service.address, credentials=shown) as executor:
        list(executor.map(noop, range(WARM_UP)))

        def run() -> None:
            futures = [executor.submit(noop, value) for value in range(count)]
            check([future.result() for future in futures], count)

        return with_cpu(service, count, run)


def by_map(place: Place, count: int) -> Measured:
    service, shown = place
    with Client(service.address, credentials=shown) as client:
        list(client.map(noop, range(WARM_UP)))
        return with_cpu(service, count, lambda: check(list(client.map(noop, range(count))), count))


def large_results(place: Place, count: int) -> Measured:
    service, shown = place
    count = max(1, count // LARGE_SHARE)
    with Client(service.address, credentials=shown) as client:
        list(client.map(noop, range(WARM_UP)))

        def run() -> None:
            size = sum(map(len, client.map(large, range(count))))
            if size != count * LARGE_BYTES:
                raise RuntimeError("the results are wrong")

        return with_cpu(service, count, run)


WAYS = {"SchedExecutor.submit": by_executor, "Client.map": by_map, "Client.map, 1 MiB results": large_results}
#: Large results are told, and have no floor: what they cost is the cipher.
WITH_FLOOR = ("SchedExecutor.submit", "Client.map")
PLACES = {"plain": plain, "TLS, token": secure}


def main() -> int:
    parser = arguments(__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--tasks", type=int, default=20_000, help="of each run (default %(default)s)")
    options = parser.parse_args()

    measured: dict[tuple[str, str], list[Measured]] = {(way, place): [] for way in WAYS for place in PLACES}
    for _ in range(options.runs):
        for way, run in WAYS.items():
            for name, place in PLACES.items():
                with place() as where:
                    measured[way, name].append(run(where, options.tasks))

    parts = ("daemon", "client", "workers", "children")
    rows = []
    for (way, name), runs in measured.items():
        rates = [rate for rate, _ in runs]
        cpu = [median([us[part] for _, us in runs]) for part in parts]
        rows.append([way, name, median(rates), spread(rates), *cpu])

    def ratio(way: str) -> float:
        """The median of the ratios of each round: what ran close together is compared."""
        pairs = zip(measured[way, "TLS, token"], measured[way, "plain"], strict=True)
        return median([ours[0] / theirs[0] for ours, theirs in pairs])

    floors = [Floor(f"{way}: with TLS and token, against plain", ratio(way), RATIO_FLOOR) for way in WITH_FLOOR]
    columns = ["call", "over", "tasks/s", "lowest .. highest", *(f"{part}, CPU us" for part in parts)]
    return finish(options, "tls", columns, rows, floors)


if __name__ == "__main__":
    sys.exit(main())
