"""What code inside a task may call. Imports little: it is loaded by every task that reports."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Mapping

#: How long a report of a command waits for the worker before it is given up: progress must not hold up the work.
SEND_TIMEOUT_S = 1.0

#: Inside a call: how its child process sends a report. None in a command, and outside of any task.
send_from_call: Callable[[int, dict[str, float]], None] | None = None


def report(step: int, metric: float | None = None, **metrics: float) -> None:
    """Tell the scheduler how far this task is: `step`, and numbers by name.

    A lone number is called "metric". Works in a call and, through `$SCHEDD_REPORT`, in a command; does nothing outside
    of a task. The newest report is what others see. Raises ValueError or TypeError for what is not a number.
    """
    values = {name: float(value) for name, value in metrics.items()}
    if metric is not None:
        values["metric"] = float(metric)
    if send_from_call is not None:
        send_from_call(int(step), values)
    else:
        _send_from_command(int(step), values, os.environ)


def _send_from_command(step: int, metrics: dict[str, float], env: Mapping[str, str]) -> None:
    path = env.get("SCHEDD_REPORT")
    if not path:
        return
    # Spelled out, because JSON has no word for NaN: a metric that is one is told as null.
    numbers = {name: value if value - value == 0 else None for name, value in metrics.items()}
    message = {
        "task_id": int(env.get("SCHEDD_TASK_ID", "0")),
        "attempt": int(env.get("SCHEDD_ATTEMPT", "0")),
        "step": step,
        "metrics": numbers,
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.settimeout(SEND_TIMEOUT_S)
        try:
            channel.sendto(json.dumps(message).encode(), path)
        except OSError:
            # The worker is gone or far behind. The task itself is fine.
            return
