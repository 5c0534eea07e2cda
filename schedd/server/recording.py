"""Facts as log lines: one rich line for each attempt that ended, the life of workers, and nothing for what is usual.

A second of a busy daemon has thousands of attempts that went well. Of those a bounded number is told one by one, and
how many there were besides.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from schedd.core import effects as fx
from schedd.core.model import SECOND, AttemptRecord, Cause, Instant, Task
from schedd.core.tasks import TaskTable
from schedd.log import Log

log = Log("schedd.server")


#: After a quiet time so many seconds' worth of lines may come at once.
BURST_S = 10
#: Seconds between two lines that count what was left out.
COUNT_INTERVAL_S = 10


class Recorder:
    """Logs facts. Of attempts that went well, at level info, `attempts_per_s` in the mean; all at level debug."""

    def __init__(self, attempts_per_s: float) -> None:
        self._per_s = attempts_per_s
        self._room = self._room_max = attempts_per_s * BURST_S
        self._before: Instant = 0
        #: Attempts that went well and have no line, and when they are told of.
        self._left_out = 0
        self._count_at: Instant = 0

    def record(self, facts: list[fx.Fact], tasks: TaskTable, now: Instant) -> None:
        """Log the facts of a turn."""
        for fact in facts:
            kind = type(fact)
            if kind is fx.AttemptEnded:
                ended: fx.AttemptEnded = fact  # type: ignore[assignment]
                if ended.record.cause is not Cause.OK or self._has_room(now):
                    _attempt(ended, tasks.get(ended.task_id))
            elif kind in _LINES:
                _LINES[kind](fact)
        if self._left_out and now >= self._count_at:
            log.info("attempts_not_logged", outcome=Cause.OK, count=self._left_out)
            self._left_out = 0

    def _has_room(self, now: Instant) -> bool:
        """Whether an attempt that went well has a line of its own: a bucket that fills with `attempts_per_s`."""
        if self._room < 1:
            self._room = min(self._room_max, self._room + self._per_s * (now - self._before) / SECOND)
            self._before = now
        if self._room >= 1:
            self._room -= 1
            return True
        if log.enabled(logging.DEBUG):
            return True
        if self._per_s:
            self._count_at = self._count_at if self._left_out else now + COUNT_INTERVAL_S * SECOND
            self._left_out += 1
        return False


def _attempt(fact: fx.AttemptEnded, task: Task | None) -> None:
    r: AttemptRecord = fact.record
    began = r.started_at_ns
    log.info(
        "attempt_finished",
        task=fact.task_id,
        attempt=r.attempt,
        worker=r.worker_id,
        kind=task.kind if task is not None else None,
        job=(task.job or None) if task is not None else None,
        outcome=r.cause,
        exit_code=r.exit_code,
        signal=r.signal,
        queueing_delay_s=(began - task.submitted_ns) / SECOND if began and task is not None else None,
        runtime_s=(r.finished_at_ns - began) / SECOND if began else None,
        message=r.message or None,
    )


def _entered(fact: fx.WorkerEntered) -> None:
    resources = fact.resources
    log.info(
        "worker_returned" if fact.again else "worker_joined",
        worker=fact.worker_id,
        cpus=resources.cpus,
        ram_gb=resources.ram_gb,
        gpus=len(resources.devices()),
    )


def _silent(fact: fx.WorkerWentSilent) -> None:
    log.warning(
        "worker_unreachable",
        worker=fact.worker_id,
        reason=fact.reason,
        lost_in_s=(fact.lost_at_ns - fact.at_ns) / SECOND,
    )


def _gone(fact: fx.WorkerGone) -> None:
    if fact.lost:
        log.warning("worker_lost", worker=fact.worker_id, reason=fact.reason, requeued=fact.requeued)
    else:
        log.info("worker_gone", worker=fact.worker_id, reason=fact.reason, requeued=fact.requeued)


def _draining(fact: fx.WorkerStartedDraining) -> None:
    log.info("worker_draining", worker=fact.worker_id)


def _undrained(fact: fx.WorkerStoppedDraining) -> None:
    log.info("worker_undrained", worker=fact.worker_id)


def _quarantined(fact: fx.WorkerQuarantined) -> None:
    probe_in_s = (fact.probe_at_ns - fact.at_ns) / SECOND
    log.warning(
        "worker_quarantined", worker=fact.worker_id, reason=fact.reason, times=fact.repeats, probe_in_s=probe_in_s
    )


def _cleared(fact: fx.WorkerCleared) -> None:
    log.warning("worker_cleared", worker=fact.worker_id, reason=fact.reason)


def _kind_held(fact: fx.KindHeld) -> None:
    probe_in_s = (fact.probe_at_ns - fact.at_ns) / SECOND
    log.warning(
        "kind_held", kind=fact.kind, job=fact.job or None, reason=fact.reason, times=fact.repeats, probe_in_s=probe_in_s
    )


def _kind_released(fact: fx.KindReleased) -> None:
    log.warning("kind_released", kind=fact.kind, job=fact.job or None, reason=fact.reason)


def _stolen(fact: fx.AttemptStolen) -> None:
    log.debug("attempt_stolen", task=fact.task_id, victim=fact.victim_id, thief=fact.thief_id)


def _asked(fact: fx.PreemptAsked) -> None:
    log.info("preempt_asked", task=fact.task_id, attempt=fact.attempt, room_for=fact.for_id or None)


_LINES: dict[type[fx.Fact], Callable[[Any], None]] = {
    fx.WorkerEntered: _entered,
    fx.WorkerWentSilent: _silent,
    fx.WorkerGone: _gone,
    fx.WorkerStartedDraining: _draining,
    fx.WorkerStoppedDraining: _undrained,
    fx.WorkerQuarantined: _quarantined,
    fx.WorkerCleared: _cleared,
    fx.KindHeld: _kind_held,
    fx.KindReleased: _kind_released,
    fx.AttemptStolen: _stolen,
    fx.PreemptAsked: _asked,
}
