"""Facts as log lines: one rich line for each attempt that ended, the life of workers, and nothing for what is usual."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from schedd.core import effects as fx
from schedd.core.model import SECOND, AttemptRecord, Cause, Task
from schedd.core.tasks import TaskTable
from schedd.log import Log

log = Log("schedd.server")


def record(facts: list[fx.Fact], tasks: TaskTable) -> None:
    """Log the facts of a turn. Attempts that went well are of level debug, all others of level info."""
    attempts_wanted = log.enabled(logging.DEBUG)
    for fact in facts:
        kind = type(fact)
        if kind is fx.AttemptEnded:
            ended: fx.AttemptEnded = fact  # type: ignore[assignment]
            if attempts_wanted or ended.record.cause is not Cause.OK:
                _attempt(ended, tasks.get(ended.task_id))
        elif kind in _LINES:
            _LINES[kind](fact)


def _attempt(fact: fx.AttemptEnded, task: Task | None) -> None:
    r: AttemptRecord = fact.record
    began = r.started_at_ns
    log.info(
        "attempt_finished",
        task=fact.task_id,
        attempt=r.attempt,
        worker=r.worker_id,
        outcome=r.cause,
        exit_code=r.exit_code,
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
