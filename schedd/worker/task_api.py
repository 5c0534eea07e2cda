"""What code inside a task may call. Imports little: it is loaded by every task that reports."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable, Mapping
from types import FrameType

#: How long a report of a command waits for the worker before it is given up: progress must not hold up the work.
SEND_TIMEOUT_S = 1.0

#: Inside a call: how its child process sends a report. None in a command, and outside of any task.
send_from_call: Callable[[int, dict[str, float]], None] | None = None
#: Inside a call: whether it was asked to stop. None in a command, and outside of any task.
stop_of_call: Callable[[], bool] | None = None


def report(step: int, metric: float | None = None, **metrics: float) -> None:
    """Tell the scheduler how far this task is: `step`, and numbers by name.

    A lone number is called "metric". Works in a call and, through `$SCHEDD_REPORT`, in a command; does nothing outside
    of a task. The newest report is what others see. One of more than 100 numbers, with a name of more than 100
    characters or with a step of 2**63 or more is dropped without a word. Raises ValueError, TypeError or OverflowError
    for what is no number, or no text, that can be sent.
    """
    values = {name: float(value) for name, value in metrics.items()}
    if metric is not None:
        values["metric"] = float(metric)
    if send_from_call is not None:
        send_from_call(int(step), values)
    else:
        _send_from_command(int(step), values, os.environ)


def should_stop() -> bool:
    """Tell whether this task was asked to stop: preempted, cancelled, or out of time. False outside of a task.

    Once it is True, save what is worth it and leave before the grace is over. In a call it works in any thread, and
    from the first time on there comes no SIGTERM but this answer. In a command it turns SIGTERM into this answer, from
    the first time on that the main thread asks; a handler that is there already is called too.
    """
    if stop_of_call is not None:
        return stop_of_call()
    return "SCHEDD_TASK_ID" in os.environ and _signals.has_come()


class _Signals:
    """Notes that a command was sent SIGTERM. Helpers that it forks end by the signal as ever."""

    def __init__(self) -> None:
        self._asked = self._listens = False
        self._before: Callable[[int, FrameType | None], object] | int | None = None

    def has_come(self) -> bool:
        if not self._listens:
            self._listen()
        return self._asked

    def _listen(self) -> None:
        self._before = signal.getsignal(signal.SIGTERM)
        with contextlib.suppress(ValueError):  # only the main thread can; it may ask later
            signal.signal(signal.SIGTERM, self._on_sigterm)
            self._listens = True
            # Python forgets a signal that comes to a fork before it is set up: `Process.terminate` would be lost.
            os.register_at_fork(before=_hold, after_in_parent=_let_through, after_in_child=self._leave_alone)

    def _leave_alone(self) -> None:
        signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)
        _let_through()

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        if callable(self._before):
            self._before(number, frame)


def _hold() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))


def _let_through() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))


_signals = _Signals()


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
