"""How soon the daemon serves, and how long a look at the queue takes as a whole process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import Floor, Service, arguments, finish, median, spread, timed

READY_FLOOR_S = 1.0
TASKS_FLOOR_S = 0.35


def schedd() -> list[str]:
    """The command as a user has it."""
    script = Path(sys.executable).with_name("schedd")
    return [str(script)] if script.exists() else [sys.executable, "-m", "schedd.cli"]


def serve_ready(folder: Path) -> tuple[float, float]:
    """Seconds until the address file is there, and until the service manager is told READY=1."""
    address_file, notify = folder / "address", folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(notify))
        manager.settimeout(30)
        argv = [*schedd(), "serve", "--listen", "127.0.0.1:0", "--address-file", str(address_file)]
        started = time.perf_counter()
        daemon = subprocess.Popen(
            argv,
            env={**os.environ, "NOTIFY_SOCKET": str(notify), "SCHEDD_STATE_DIR": str(folder)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while not address_file.exists() and daemon.poll() is None:
                time.sleep(0.001)
            listening = time.perf_counter() - started
            if not manager.recv(4096).startswith(b"READY=1"):
                raise RuntimeError("the daemon said something else first")
            ready = time.perf_counter() - started
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(30)
    notify.unlink()
    return listening, ready


def run(argv: list[str], address: str = "") -> float:
    with timed() as taken:
        subprocess.run(
            argv,
            env={**os.environ, "SCHEDD_ADDRESS": address},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )
    return taken[0]


def main() -> int:
    options = arguments(__doc__ or "", runs=15).parse_args()
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, Service(workers=1) as service:
        run([*schedd(), "tasks"], service.address)  # code is compiled, files are in memory
        for _ in range(options.runs):
            listening, ready = serve_ready(Path(folder))
            seconds.setdefault("schedd serve: listens", []).append(listening)
            seconds.setdefault("schedd serve: READY=1", []).append(ready)
            seconds.setdefault("schedd tasks", []).append(run([*schedd(), "tasks"], service.address))
            seconds.setdefault("schedd --help", []).append(run([*schedd(), "--help"]))
            seconds.setdefault("python -c pass", []).append(run([sys.executable, "-c", "pass"]))
    base = median(seconds["python -c pass"])
    rows = [[name, median(taken), spread(taken), median(taken) / base] for name, taken in seconds.items()]
    floors = [
        Floor("seconds until READY=1", median(seconds["schedd serve: READY=1"]), READY_FLOOR_S, at_most=True),
        Floor("seconds of schedd tasks", median(seconds["schedd tasks"]), TASKS_FLOOR_S, at_most=True),
    ]
    return finish(options, "startup", ["what", "seconds", "lowest .. highest", ": python -c pass"], rows, floors)


if __name__ == "__main__":
    sys.exit(main())
