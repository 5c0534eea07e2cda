"""Clients that ask for events, and wait for those that are not on disk yet.

Events are read from the journal, a page for each question, so that nobody hears of what a power cut may take back, and
who reads slowly only asks later. Nothing is kept for it here but its last question. Who follows gets a page every so
often and no more: on a daemon that ends thousands of tasks a second he falls behind, and the daemon does not.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import structs

from schedd.core.model import TaskId
from schedd.server.connections import Peer
from schedd.server.ports import Archive, Reactor, Timer
from schedd.wire import messages as m

#: The longest that a question may wait for events, in seconds.
WAIT_S_MAX = 60.0
#: What is written within so many seconds is read in one go, a page for each follower: each look costs a thread and a
#: database some 300 us, and a page of a thousand events some 6 ms.
GATHER_S = 0.05

#: With more followers than this each waits longer, so that all of them together cost no more.
READ_TOGETHER = 2
#: Questions of one peer that are being read for at a time.
READING_MAX = 4

#: Gives each of these tasks the name of its job to a callback, as far as they are known.
JobsOf = Callable[[Peer, int, list[TaskId], Callable[[dict[TaskId, str]], None]], None]


class _Waiting:
    """A question and when it gives up."""

    __slots__ = ("archive", "request", "timer")

    def __init__(self, archive: Archive, request: m.ListEvents, timer: Timer) -> None:
        self.archive = archive
        self.request = request
        self.timer = timer


class Following:
    """Answers `ListEvents`. Of each peer one question may wait; a second one has the first answered."""

    def __init__(self, reactor: Reactor, jobs_of: JobsOf) -> None:
        self._reactor = reactor
        self._jobs_of = jobs_of
        self._waiting: dict[Peer, _Waiting] = {}
        #: How many questions of a peer are being read for.
        self._reading: dict[Peer, int] = {}
        self._is_due = False
        #: How often something was written.
        self._writes = 0

    def ask(self, archive: Archive, peer: Peer, request: m.ListEvents) -> None:
        """Answer with events from the cursor on; where there are none, once there are, or the time is over."""
        if self._reading.get(peer, 0) >= READING_MAX:
            text = f"{READING_MAX} questions of this connection for events are under way"
            peer.send(m.RequestFailed(request.request, m.TOO_MANY, text, "ask for the next page after the last"))
        elif request.wait_s > 0 and request.cursor[0] >= 0:
            self._wait(archive, peer, request)
            self._arm()
        else:
            self._read(archive, peer, request)

    def _read(self, archive: Archive, peer: Peer, request: m.ListEvents) -> None:
        writes = self._writes
        self._reading[peer] = self._reading.get(peer, 0) + 1

        def answer(page: m.EventList) -> None:
            self._read_for(peer)
            if request.jobs and page.events:
                ids = [TaskId(event.fields["task"]) for event in page.events if "task" in event.fields]
                self._jobs_of(peer, request.request, ids, lambda jobs: go_on(_of_jobs(page, request.jobs, jobs)))
            else:
                go_on(page)

        def go_on(page: m.EventList) -> None:
            moved = structs.replace(request, cursor=page.cursor)
            if peer.is_closing:
                return
            if page.events or page.missed or not request.wait_s > 0 or request.cursor[0] < 0:
                peer.send(page)
            else:
                self._wait(archive, peer, moved)
                if page.more or self._writes != writes:  # others' events, or written after the journal was read
                    self._arm()

        def failed(message: str, hint: str) -> None:
            self._read_for(peer)
            peer.send(m.RequestFailed(request.request, m.JOURNAL_FAILING, message, hint))

        archive.ask(lambda: archive.events(request), answer, failed)

    def _read_for(self, peer: Peer) -> None:
        """Count a question of a peer as read for."""
        self._reading[peer] -= 1
        if not self._reading[peer]:
            del self._reading[peer]

    def _wait(self, archive: Archive, peer: Peer, request: m.ListEvents) -> None:
        self._give_up(peer)
        timer = self._reactor.call_later(min(request.wait_s, WAIT_S_MAX), self._give_up, peer)
        self._waiting[peer] = _Waiting(archive, request, timer)

    def _give_up(self, peer: Peer) -> None:
        """Tell a peer that there was nothing, if it waits."""
        waiting = self.forget(peer)
        if waiting is not None:
            peer.send(m.EventList(waiting.request.request, [], waiting.request.cursor))

    def forget(self, peer: Peer) -> _Waiting | None:
        """Forget a peer's question."""
        waiting = self._waiting.pop(peer, None)
        if waiting is not None:
            waiting.timer.cancel()
        return waiting

    def written(self) -> None:
        """Something is on disk that was not before."""
        self._writes += 1
        if self._waiting:
            self._arm()

    def _arm(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._reactor.call_later(GATHER_S * max(1.0, len(self._waiting) / READ_TOGETHER), self._look)

    def _look(self) -> None:
        self._is_due = False
        asking, self._waiting = self._waiting, {}
        for peer, waiting in asking.items():
            waiting.timer.cancel()
            self._read(waiting.archive, peer, waiting.request)


def _of_jobs(page: m.EventList, wanted: list[str], jobs: dict[TaskId, str]) -> m.EventList:
    """Leave the events of tasks of these jobs."""
    names = frozenset(wanted)

    def is_wanted(event: m.Event) -> bool:
        told = event.fields.get("jobs") or [jobs.get(TaskId(event.fields.get("task", 0)))]
        return not names.isdisjoint(told)

    return structs.replace(page, events=[event for event in page.events if is_wanted(event)])
