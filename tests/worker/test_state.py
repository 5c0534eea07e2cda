from __future__ import annotations

from typing import Any

import pytest

from schedd.core.model import SECOND, Cause, TaskId
from schedd.wire.framing import FRAME_BYTES_MAX, encode_frame
from schedd.wire.messages import (
    AckFinished,
    AttemptFinished,
    AttemptReports,
    AttemptsFinished,
    AttemptsStarted,
    AttemptStarted,
    DrainWorker,
    DropAttempts,
    HeartbeatReply,
    HoldsAttempt,
    RevokeAnswers,
    RevokeAttempts,
    StopAttempts,
    WorkerDraining,
)
from schedd.worker.attempts import Ending
from schedd.worker.outbox import BATCH_BYTES_MAX

from .builders import CALL, actions_of, dispatch, end, machine, row_of


def pairs(*task_ids: int, attempt: int = 1) -> list[tuple[TaskId, int]]:
    return [(TaskId(task_id), attempt) for task_id in task_ids]


def ends_in(messages: list[Any]) -> list[tuple[int, str]]:
    batches = [message for message in messages if isinstance(message, AttemptsFinished)]
    return [(end.task_id, end.cause.value) for batch in batches for end in batch.attempts]


def test_dispatch_starts_what_fits_and_keeps_the_rest_in_order() -> None:
    state = machine(cpus=2)
    state.on_message(dispatch(1, 2, 3, 4), 10)
    assert actions_of(state) == [("start", 1), ("start", 2)]
    assert list(state.backlog) == [3, 4]
    assert state.take_messages() == [
        AttemptsStarted([AttemptStarted(TaskId(1), 1, 10), AttemptStarted(TaskId(2), 1, 10)])
    ]
    state.check()


def test_end_starts_the_head_and_says_so_after_the_end() -> None:
    state = machine()
    state.on_message(dispatch(1, 2), 10)
    state.take_messages()
    end(state, 1, 20, Ending(Cause.OK, b"x", 0))
    assert state.take_messages() == [
        AttemptsFinished(1, [AttemptFinished(TaskId(1), 1, Cause.OK, 10, 20, b"x", 0)]),
        AttemptsStarted([AttemptStarted(TaskId(2), 1, 20)]),
    ]


def test_start_and_end_within_one_turn_is_told_as_an_end_only() -> None:
    state = machine()
    state.on_message(dispatch(1), 10)
    end(state, 1, 20)
    assert [type(message) for message in state.take_messages()] == [AttemptsFinished]


def test_head_that_does_not_fit_is_not_overtaken() -> None:
    state = machine(cpus=4)
    state.on_message(dispatch(1, cpus=3), 0)
    state.on_message(dispatch(2, cpus=4), 0)
    state.on_message(dispatch(3, cpus=1), 0)
    assert actions_of(state) == [("start", 1)]
    end(state, 1)
    assert actions_of(state) == [("start", 2)]
    end(state, 2)
    assert actions_of(state) == [("start", 3)]


def test_devices_are_told_at_start_and_end() -> None:
    state = machine(cpus=8, gpus=2)
    state.on_message(dispatch(1, 2, 3, min_gpus=1), 5)
    [started] = state.take_messages()
    assert isinstance(started, AttemptsStarted)
    assert [a.devices for a in started.attempts] == [(0,), (1,)]
    end(state, 2, 6)
    finished, started = state.take_messages()
    assert isinstance(finished, AttemptsFinished)
    assert finished.attempts[0].devices == (1,)
    assert isinstance(started, AttemptsStarted)
    assert started.attempts[0].devices == (1,)
    state.check()


def test_impossible_need_is_rejected_with_the_reason() -> None:
    state = machine(cpus=2)
    state.on_message(dispatch(1, cpus=3), 7)
    [message] = state.take_messages()
    assert isinstance(message, AttemptsFinished)
    [finished] = message.attempts
    assert finished.cause is Cause.REJECTED
    assert finished.message == "cannot run here: needs 3 CPUs, has 2"
    assert state.is_idle


def test_bad_spec_index_and_bad_variant_are_rejected() -> None:
    state = machine()
    good = dispatch(1)
    for index in (-1, 1, 2**40):
        wire = type(good.attempts[0])(TaskId(100 + index), 1, index, b"")
        state.on_message(type(good)(good.specs, [wire]), 0)
    state.on_message(dispatch(2, variant=3), 0)
    state.on_message(dispatch(3, variant=-1), 0)
    assert {cause for _, cause in ends_in(state.take_messages())} == {"rejected"}
    assert state.is_idle


def test_same_attempt_again_is_ignored_wherever_the_first_one_is() -> None:
    state = machine()
    state.on_message(dispatch(1, 2), 0)
    actions_of(state)
    state.on_message(dispatch(1, 2), 0)
    end(state, 1)
    state.on_message(dispatch(1), 0)
    assert state.ignored_count == 3
    assert actions_of(state) == [("start", 2)]
    assert not state.backlog


def test_newer_attempt_waits_until_the_older_is_gone() -> None:
    state = machine(cpus=2)
    state.on_message(dispatch(1), 0)
    old = row_of(state, 1)
    state.take_messages()
    actions_of(state)
    state.on_message(dispatch(1, attempt=2), 1)
    assert actions_of(state) == [("kill", 1)]
    state.check()
    state.on_ended(old, Ending(Cause.ERROR), 2)
    assert actions_of(state) == [("start", 1)]
    assert state.take_messages() == [AttemptsStarted([AttemptStarted(TaskId(1), 2, 2)])]


def test_older_attempt_is_ignored() -> None:
    state = machine()
    state.on_message(dispatch(1, attempt=3), 0)
    state.on_message(dispatch(1, attempt=2), 0)
    assert row_of(state, 1).attempt == 3
    assert state.ignored_count == 1


def test_revoke_gives_back_what_has_not_started() -> None:
    state = machine()
    state.on_message(dispatch(1, 2, 3), 0)
    state.take_messages()
    state.on_message(RevokeAttempts([*pairs(1, 3, 9), *pairs(2, attempt=7)]), 0)
    assert state.take_messages() == [
        RevokeAnswers(
            [(TaskId(1), 1, False), (TaskId(3), 1, True), (TaskId(9), 1, False), (TaskId(2), 7, False)],
        )
    ]
    assert list(state.backlog) == [2]


def test_revoked_head_lets_the_next_one_start() -> None:
    state = machine(cpus=4)
    state.on_message(dispatch(1, cpus=3), 0)
    state.on_message(dispatch(2, cpus=4), 0)
    state.on_message(dispatch(3, cpus=1), 0)
    actions_of(state)
    state.on_message(RevokeAttempts(pairs(2)), 0)
    assert actions_of(state) == [("start", 3)]


def test_revoke_of_a_call_that_a_child_has_begun_is_refused() -> None:
    state = machine()
    state.on_message(dispatch(1, 2, payload=CALL), 0)
    state.take_messages()
    row_of(state, 2).begun = True
    state.on_message(RevokeAttempts(pairs(2)), 0)
    assert state.take_messages() == [RevokeAnswers([(TaskId(2), 1, False)])]


def test_answers_come_before_the_end_that_starts_the_next() -> None:
    state = machine()
    state.on_message(dispatch(1, 2, 3), 0)
    state.take_messages()
    end(state, 1)
    state.on_message(RevokeAttempts(pairs(3)), 0)
    kinds = [type(message) for message in state.take_messages()]
    assert kinds == [RevokeAnswers, AttemptsFinished, AttemptsStarted]


def test_stop_in_the_backlog_ends_at_once() -> None:
    state = machine()
    state.on_message(dispatch(1, 2), 0)
    state.take_messages()
    actions_of(state)
    state.on_message(StopAttempts(pairs(2)), 9)
    assert ends_in(state.take_messages()) == [(2, "cancelled")]
    assert actions_of(state) == []


def test_stop_terminates_then_kills_after_the_grace() -> None:
    state = machine()
    state.on_message(dispatch(1, grace_s=2.0), 0)
    actions_of(state)
    state.on_message(StopAttempts(pairs(1), Cause.CANCELLED), SECOND)
    state.on_message(StopAttempts(pairs(1), Cause.PREEMPTED), 2 * SECOND)
    assert actions_of(state) == [("terminate", 1)]
    assert state.next_deadline() == 3 * SECOND
    state.wake(3 * SECOND)
    assert actions_of(state) == [("kill", 1)]
    state.take_messages()
    end(state, 1, 4 * SECOND, Ending(Cause.ERROR, b"r", None, 9, "killed by SIGKILL"))
    [message] = state.take_messages()
    assert isinstance(message, AttemptsFinished)
    [finished] = message.attempts
    assert (finished.cause, finished.signal, finished.result, finished.message) == (Cause.CANCELLED, 9, None, "")
    assert state.next_deadline() is None


@pytest.mark.parametrize(
    ("ending", "told"),
    [
        (Ending(Cause.OK, b"r", 0), (Cause.OK, b"r", 0, "")),
        (Ending(Cause.ERROR, b"r", 3, None, "exit code 3"), (Cause.PREEMPTED, None, 3, "")),
        (Ending(Cause.OOM_GPU, None, 1, None, "out of GPU memory"), (Cause.PREEMPTED, None, 1, "")),
    ],
)
def test_end_in_the_grace_of_a_preemption(ending: Ending, told: tuple[Cause, bytes | None, int, str]) -> None:
    """Who is done is done; whatever else it says, it was asked to go."""
    state = machine()
    state.on_message(dispatch(1), 0)
    state.on_message(StopAttempts(pairs(1), Cause.PREEMPTED), SECOND)
    state.take_messages()
    end(state, 1, 2 * SECOND, ending)
    [message] = state.take_messages()
    assert isinstance(message, AttemptsFinished)
    [finished] = message.attempts
    assert (finished.cause, finished.result, finished.exit_code, finished.message) == told


def test_preemption_of_what_has_not_begun() -> None:
    state = machine()
    state.on_message(dispatch(1, 2), 0)
    state.take_messages()
    state.on_message(StopAttempts(pairs(2), Cause.PREEMPTED, 3.0), 1)
    assert ends_in(state.take_messages()) == [(2, "preempted")]
    assert not state.backlog


def test_grace_of_the_message_counts() -> None:
    state = machine()
    state.on_message(dispatch(1, grace_s=2.0), 0)
    state.on_message(StopAttempts(pairs(1), Cause.PREEMPTED, 30.0), SECOND)
    assert state.next_deadline() == 31 * SECOND


def test_cancel_after_a_preemption() -> None:
    """It counts, and does not wait for what only the preemption would have given."""
    state = machine()
    state.on_message(dispatch(1, grace_s=2.0), 0)
    state.on_message(StopAttempts(pairs(1), Cause.PREEMPTED, 30.0), SECOND)
    state.on_message(StopAttempts(pairs(1), Cause.CANCELLED), 5 * SECOND)
    assert actions_of(state) == [("start", 1), ("terminate", 1)]
    assert state.next_deadline() == 7 * SECOND
    state.wake(7 * SECOND)
    assert actions_of(state) == [("kill", 1)]
    state.take_messages()
    end(state, 1, 8 * SECOND)
    assert ends_in(state.take_messages()) == [(1, "cancelled")]


def test_grace_can_be_made_shorter_and_not_longer() -> None:
    state = machine()
    state.on_message(dispatch(1), 0)
    state.on_message(StopAttempts(pairs(1), Cause.PREEMPTED, 30.0), SECOND)
    state.on_message(StopAttempts(pairs(1), Cause.PREEMPTED, 60.0), 2 * SECOND)
    assert state.next_deadline() == 31 * SECOND
    state.on_message(StopAttempts(pairs(1), Cause.PREEMPTED, 0.0), 3 * SECOND)
    assert actions_of(state) == [("start", 1), ("terminate", 1)]
    state.wake(3 * SECOND)
    assert actions_of(state) == [("kill", 1)]


def test_place_of_the_preempted_goes_to_the_head_of_the_backlog() -> None:
    """Without a word to the daemon in between, and not before its processes are gone."""
    state = machine()
    state.on_message(dispatch(1), 0)
    state.on_message(StopAttempts(pairs(1), Cause.PREEMPTED), 1)
    state.on_message(dispatch(2), 1)
    assert actions_of(state) == [("start", 1), ("terminate", 1)]
    end(state, 1, 2, Ending(Cause.ERROR))
    assert actions_of(state) == [("start", 2)]


def test_stop_without_grace_kills_at_once() -> None:
    state = machine()
    state.on_message(dispatch(1, grace_s=0), 0)
    state.on_message(StopAttempts(pairs(1)), 1)
    assert actions_of(state) == [("start", 1), ("kill", 1)]


def test_timeout_is_reported_as_such() -> None:
    state = machine()
    state.on_message(dispatch(1, timeout_s=1.5), 0)
    actions_of(state)
    state.wake(SECOND)
    assert actions_of(state) == []
    assert state.next_deadline() == 3 * SECOND // 2
    state.wake(2 * SECOND)
    assert actions_of(state) == [("terminate", 1)]
    end(state, 1, 3 * SECOND, Ending(Cause.ERROR, signal=15))
    [message] = state.take_messages()
    assert isinstance(message, AttemptsFinished)
    assert message.attempts[0].cause is Cause.TIMEOUT
    assert message.attempts[0].message == "ran longer than 1.5 s"


def test_timeout_of_one_that_ended_in_time_is_forgotten() -> None:
    state = machine()
    state.on_message(dispatch(1, timeout_s=1.0), 0)
    end(state, 1)
    assert state.next_deadline() is None
    state.wake(9 * SECOND)
    assert actions_of(state) == [("start", 1)]


def test_drop_reports_nothing_and_frees_when_it_is_gone() -> None:
    state = machine()
    state.on_message(dispatch(1, 2), 0)
    state.take_messages()
    actions_of(state)
    row = row_of(state, 1)
    state.on_message(DropAttempts([*pairs(1), *pairs(5)]), 0)
    assert actions_of(state) == [("kill", 1)]
    assert not state.is_idle
    state.on_ended(row, Ending(Cause.ERROR), 5)
    assert actions_of(state) == [("start", 2)]
    assert [type(message) for message in state.take_messages()] == [AttemptsStarted]


def test_drop_of_an_end_that_is_not_acknowledged_forgets_it() -> None:
    state = machine()
    state.on_message(dispatch(1, 2), 0)
    end(state, 1)
    end(state, 2)
    state.on_message(DropAttempts(pairs(1)), 0)
    assert ends_in(state.take_messages()) == [(2, "ok")]


def test_drop_of_a_newer_end_leaves_the_older_one_known() -> None:
    """Dispatched once more, the older attempt does not run again beside the end that it already has."""
    state = machine()
    for attempt in (1, 2):
        state.on_message(dispatch(1, attempt=attempt), 0)
        end(state, 1)
    state.on_message(DropAttempts(pairs(1, attempt=2)), 0)
    state.on_message(dispatch(1, attempt=1), 0)
    assert state.is_idle
    assert state.holds() == [HoldsAttempt(TaskId(1), 1, "finished", 0)]


def test_ends_are_sent_again_after_a_reconnection_until_acknowledged() -> None:
    state = machine(cpus=3)
    state.on_message(dispatch(1, 2, 3, 4), 0)
    end(state, 1, 5)
    state.take_messages()
    end(state, 2, 6)
    state.take_messages()
    state.on_message(AckFinished(1), 7)
    state.is_connected = False
    end(state, 3, 8)
    assert state.take_messages() == []
    assert state.holds() == [
        HoldsAttempt(TaskId(2), 1, "finished", 0),
        HoldsAttempt(TaskId(3), 1, "finished", 0),
        HoldsAttempt(TaskId(4), 1, "running", 5),
    ]
    state.on_hello()
    state.is_connected = True
    messages = state.take_messages()
    assert ends_in(messages) == [(2, "ok"), (3, "ok")]
    assert [type(message) for message in messages] == [AttemptsFinished, AttemptsFinished]
    state.on_message(AckFinished(99), 9)
    assert [hold.phase for hold in state.holds()] == ["running"]


def test_starts_between_greeting_and_welcome_are_told_after_it() -> None:
    state = machine()
    state.is_connected = False
    state.on_message(dispatch(1, 2), 0)
    assert [(hold.task_id, hold.phase) for hold in state.holds()] == [(1, "running"), (2, "backlog")]
    state.on_hello()
    end(state, 1, 3)
    state.is_connected = True
    messages = state.take_messages()
    assert [type(message) for message in messages] == [AttemptsFinished, AttemptsStarted]


def test_large_results_are_spread_over_batches() -> None:
    state = machine(cpus=3)
    state.on_message(dispatch(1, 2, 3), 0)
    for task_id in (1, 2, 3):
        end(state, task_id, 1, Ending(Cause.OK, b"x" * (BATCH_BYTES_MAX // 2)))
    batches = [message for message in state.take_messages() if isinstance(message, AttemptsFinished)]
    assert [(batch.seq, len(batch.attempts)) for batch in batches] == [(1, 2), (2, 1)]


def test_result_that_is_as_large_as_may_be_is_a_batch_of_its_own() -> None:
    """Beside another one it would be above what a frame may have, and could never be told."""
    state = machine(cpus=3)
    state.on_message(dispatch(1, 2, 3), 0)
    for task_id, size in ((1, BATCH_BYTES_MAX - 1), (2, 60 * 1024 * 1024), (3, 1)):
        end(state, task_id, 1, Ending(Cause.OK, bytes(size)))
    batches = [message for message in state.take_messages() if isinstance(message, AttemptsFinished)]
    assert [[one.task_id for one in batch.attempts] for batch in batches] == [[1], [2], [3]]
    for batch in batches:
        assert len(encode_frame([batch])) <= FRAME_BYTES_MAX


def test_deadlines_of_what_has_ended_do_not_gather_behind_a_later_one() -> None:
    state = machine(cpus=2)
    state.on_message(dispatch(1, timeout_s=100.0), 0)
    for task_id in range(2, 1000):
        state.on_message(dispatch(task_id, timeout_s=1000.0), SECOND)
        end(state, task_id, SECOND, Ending(Cause.OK))
        state.take_messages()
    assert len(state._deadlines) < 100
    assert state.next_deadline() == 100 * SECOND


def test_drain_hands_back_the_backlog_and_leaves_when_all_is_acknowledged() -> None:
    state = machine()
    state.on_message(dispatch(1, 2, 3), 0)
    state.take_messages()
    state.on_message(DrainWorker(), 1)
    assert state.take_messages() == [WorkerDraining(pairs(2, 3))]
    state.on_message(dispatch(4), 2)
    assert state.take_messages() == [WorkerDraining(pairs(4))]
    end(state, 1, 3)
    state.take_messages()
    assert not state.can_leave
    state.on_message(AckFinished(1), 4)
    assert state.can_leave


def test_drain_without_leaving_takes_work_again() -> None:
    state = machine()
    state.on_message(dispatch(1, 2), 0)
    state.on_message(DrainWorker(leave=False), 0)
    state.on_message(dispatch(3), 0)
    assert list(state.backlog) == [3]
    assert not state.can_leave


def test_draining_worker_without_daemon_leaves_once_it_owes_no_end() -> None:
    state = machine()
    state.on_message(dispatch(1, 2), 0)
    state.take_messages()
    state.is_connected = False
    state.drain(leave=True)
    assert not state.can_leave
    state.on_message(DropAttempts(pairs(1)), 0)
    state.on_ended(next(iter(state.dying.values())), Ending(Cause.ERROR), 0)
    assert state.can_leave


def test_abandon_kills_and_reports_lost() -> None:
    state = machine(cpus=2)
    state.on_message(dispatch(1, 2, 3), 0)
    state.take_messages()
    actions_of(state)
    state.on_message(StopAttempts(pairs(2)), 0)
    state.abandon("worker stopped", 5)
    assert actions_of(state) == [("terminate", 2), ("kill", 1), ("kill", 2)]
    end(state, 1, 6)
    end(state, 2, 6)
    messages = state.take_messages()
    assert messages[0] == WorkerDraining(pairs(3))
    assert ends_in(messages) == [(1, "lost"), (2, "cancelled")]


def test_call_sent_ahead_may_end_before_its_turn() -> None:
    state = machine()
    state.on_message(dispatch(1, 2, 3, payload=CALL), 0)
    state.take_messages()
    end(state, 2, 5, Ending(Cause.OK, started_at_ns=3, finished_at_ns=4))
    assert ends_in(state.take_messages()) == [(2, "ok")]
    assert list(state.backlog) == [3]
    state.check()


def test_begun_call_of_the_backlog_is_stopped_like_one_that_runs() -> None:
    state = machine()
    state.on_message(dispatch(1, 2, payload=CALL), 0)
    row = row_of(state, 2)
    row.begun = True
    actions_of(state)
    state.on_message(StopAttempts(pairs(2)), 0)
    assert actions_of(state) == [("terminate", 2)]
    state.on_message(DropAttempts(pairs(2)), 0)
    assert actions_of(state) == [("kill", 2)]
    state.on_ended(row, Ending(Cause.ERROR), 1)
    assert not state.dying
    state.check()


def test_upcoming_lists_calls_of_the_heads_need_only() -> None:
    state = machine(cpus=1)
    state.on_message(dispatch(1, 2, 3, payload=CALL), 0)
    state.on_message(dispatch(4, payload=CALL), 0)
    state.on_message(dispatch(5, payload=CALL, cpus=0.5), 0)
    row_of(state, 2).ahead = True
    assert [row.task_id for row in state.upcoming(10)] == [3, 4]
    assert [row.task_id for row in state.upcoming(2)] == [3]


def test_upcoming_leaves_commands_and_devices_alone() -> None:
    state = machine(cpus=1, gpus=1)
    state.on_message(dispatch(1, 2), 0)
    assert state.upcoming(10) == []
    state = machine(cpus=1, gpus=1)
    state.on_message(dispatch(1, 2, payload=CALL, min_gpus=0.5), 0)
    assert state.upcoming(10) == []


def test_reports_come_after_the_start_and_before_the_end() -> None:
    state = machine(cpus=2)
    state.on_message(dispatch(1), 0)
    state.take_messages()
    state.on_message(dispatch(2), 0)
    state.on_report(TaskId(2), 1, 1, {"loss": 1.0})
    state.on_report(TaskId(1), 1, 7, {"loss": 0.5})
    state.on_report(TaskId(3), 1, 7, {"loss": 0.5})
    state.on_report(TaskId(1), 1, 7, {str(index): 0.5 for index in range(1000)})
    state.on_report(TaskId(1), 1, 1 << 63, {"loss": 0.5})
    state.on_report(TaskId(1), 1, -(1 << 70), {"loss": 0.5})
    end(state, 1)
    early, finished, started, late = state.take_messages()
    assert isinstance(early, AttemptReports)
    assert isinstance(late, AttemptReports)
    assert [r.task_id for r in early.reports] == [1]
    assert [r.task_id for r in late.reports] == [2]
    assert isinstance(finished, AttemptsFinished)
    assert isinstance(started, AttemptsStarted)
    assert state.ignored_count == 4


def test_message_for_someone_else_is_counted() -> None:
    state = machine()
    state.on_message(HeartbeatReply(1.0), 0)
    assert state.ignored_count == 1


def test_may_take_back_tells_what_needs_a_recall() -> None:
    state = machine()
    state.on_message(dispatch(1, 2), 0)
    assert not state.may_take_back(dispatch(3))
    assert state.may_take_back(dispatch(2, attempt=2))
    assert state.may_take_back(StopAttempts([]))
    assert not state.may_take_back(AckFinished(1))
