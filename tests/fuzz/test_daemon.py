"""Liars of all kinds around one daemon, in virtual time: the honest are served, the tables agree, nothing grows."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect

from schedd.core.model import Call, Cause
from schedd.errors import RemoteProtocolError
from schedd.fuzz.targets import DaemonTarget
from schedd.fuzz.values import Maker, changed
from schedd.fuzz.world import CLIENT_HELLO, FINISHED_MAX, GUESTS, TOKENS, UNFINISHED_MAX, End, World
from schedd.server.connections import GREEDY_BYTES, GREEDY_REST_S, INTAKE_MAX, LAST_INTAKE_MAX
from schedd.server.service import MESSAGE_WEIGHT
from schedd.wire import messages as m

seeds = st.integers(0, 1 << 32)


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    """Records are written, as in a daemon, and go nowhere."""
    logger = logging.getLogger("schedd")
    logger.addHandler(handler := logging.NullHandler())
    logger.propagate = False
    yield
    logger.propagate = True
    logger.removeHandler(handler)


def packed(value: Any) -> bytes:
    return msgspec.msgpack.encode(value)


# --------------------------------------------------------------------------------------------------------- each message


@pytest.mark.parametrize("kind", get_args(m.ClientRequest))
def test_each_request(kind: type[Any]) -> None:
    """Each request of a client by itself, right and wrong."""
    feed_one_kind(kind, World.from_client)


@pytest.mark.parametrize("kind", get_args(m.FromWorker))
def test_each_message_of_a_worker(kind: type[Any]) -> None:
    feed_one_kind(kind, World.from_worker)


def feed_one_kind(kind: type[Any], send: Any) -> None:
    what = inspect.type_info(kind)
    for seed in range(3):
        world, chance = World(seed), random.Random(seed)
        for lies in (0.0, 0.02, 0.2):
            for _ in range(40):
                send(world, packed([Maker(chance, lies).make(what)]))
        world.look()


@pytest.mark.parametrize("union", [m.ClientRequest, m.FromWorker])
def test_values_without_lies_can_be_decoded(union: Any) -> None:
    """Else nothing behind the decoder would be tried."""
    chance = random.Random(1)
    decode = m.decode_from_client if union is m.ClientRequest else m.decode_from_worker
    seen = set()
    good = 0
    for _ in range(300):
        try:
            messages = decode(packed(Maker(chance, 0.0).make(inspect.type_info(list[union]))))
        except RemoteProtocolError:
            continue  # a number that has no meaning there
        good += 1
        seen |= {type(message) for message in messages}
    assert seen == set(get_args(union))
    assert good > 150


# ---------------------------------------------------------------------------------------------------------- all at once


@settings(max_examples=25, deadline=None)
@given(seeds, st.randoms(use_true_random=True))
def test_anybody_sends_anything(seed: int, chance: random.Random) -> None:
    target = DaemonTarget()
    target.reset(seed)
    for _ in range(40):
        data = target.make(chance)
        target.take(data)
        target.take(target.change(data, chance) or data)
    target.world.look()


@pytest.mark.parametrize("seed", range(10))
def test_long_run_of_hostile_input(seed: int) -> None:
    target, chance = DaemonTarget(), random.Random(seed)
    target.reset(seed)
    for _ in range(400):
        data = target.make(chance)
        target.take(target.change(data, chance) or data if chance.random() < 0.5 else data)
    target.world.look()
    assert target.world.inputs > 100, "of the inputs some are for the clock"
    assert len(target.world.engine.tasks.rows) <= UNFINISHED_MAX + FINISHED_MAX


@settings(max_examples=30, deadline=None)
@given(seeds, st.lists(st.binary(max_size=200), max_size=20), st.booleans())
def test_bytes_before_a_greeting(seed: int, pieces: list[bytes], greets: bool) -> None:
    world = World(seed)
    for piece in pieces:
        world.from_stranger(piece, greets=greets)
    world.pass_time(world.settings.server.handshake_timeout_s + 1)
    world.look()
    assert all(end.is_over for end in world.strangers), "who says nothing of use has to go"


def test_greetings() -> None:
    """Of workers that lie about what they have and hold, until nobody could say who is who."""
    what = inspect.type_info(m.Hello)
    for seed in range(4):
        world, chance = World(seed), random.Random(seed)
        for _ in range(200):
            value = Maker(chance, chance.choice((0.0, 0.05))).make(what)
            if isinstance(value, dict):
                value["protocol"] = m.PROTOCOL
            world.from_stranger(packed(changed(value, chance) if chance.random() < 0.3 else value), greets=True)
        world.look()
        assert world.is_honest_task_running()


@pytest.mark.parametrize("role", range(len(TOKENS)), ids=[token.role for token in TOKENS])
@pytest.mark.parametrize("how", GUESTS)
def test_guest_at_a_door_that_asks_for_a_token(how: str, role: int) -> None:
    """However far it is honest: nobody is let in without a proof, and a role does what it may."""
    world, chance, target = World(5), random.Random(role), DaemonTarget()
    kind, head = target.guests.get(how), bytes([GUESTS.index(how), role])
    for _ in range(40):
        world.from_guest(head + (packed(Maker(chance).make(kind)) if kind else chance.randbytes(32)))
    world.look()
    assert world.is_honest_task_running()


def test_guest_with_a_true_proof_is_let_in() -> None:
    world = World()
    before = world.engine.counters.submitted
    for role in range(len(TOKENS)):
        submit = packed([m.Submit(1, [plain_spec()], [m.TaskEntry(0)])])
        world.from_guest(bytes([GUESTS.index("guest"), role]) + submit)
    assert world.engine.counters.submitted == before + 2, "a client's and an administrator's"
    assert sum(end.protocol.is_welcomed for end in world.guests) == 3, "but not the worker that submits"


# --------------------------------------------------------------------------------------------------- a worker that lies


@pytest.mark.parametrize("seed", range(6))
def test_lying_worker_cannot_touch_what_another_runs(seed: int) -> None:
    """It reports, ends and hands back tasks of which it has none, or only its own."""
    world, chance = World(seed), random.Random(seed)
    world.client.send(frame([m.Submit(2, [plain_spec()], [m.TaskEntry(0) for _ in range(30)])]))
    what = inspect.type_info(list[m.FromWorker])
    for _ in range(150):
        world.from_worker(packed(Maker(chance).make(what)))
        assert world.is_honest_task_running()
    world.look()


def test_lies_about_the_task_of_another() -> None:
    """The very attempt that the honest worker runs, in each message that could name it."""
    world = World(3)
    it = (world.task_id, 1)
    lies: list[Any] = [
        m.AttemptsFinished(1, [m.AttemptFinished(*it, Cause.OK, 1, 2, b"forged")]),
        m.AttemptsFinished(2, [m.AttemptFinished(*it, Cause.CANCELLED, 1, 2)]),
        m.AttemptsStarted([m.AttemptStarted(*it, 1)]),
        m.AttemptReports([m.AttemptReport(*it, 1, {"x": 1.0})]),
        m.RevokeAnswers([(*it, True)]),
        m.WorkerDraining([it]),
        m.WorkerGoodbye("it is all mine"),
    ]
    for lie in lies:
        world.from_worker(packed([lie]))
        assert world.is_honest_task_running(), lie
    task = world.engine.tasks.rows[world.task_id]
    assert task.report is None
    world.worker.send(frame([m.AttemptsFinished(1, [m.AttemptFinished(*it, Cause.OK, 1, 2, b"right")])]))
    world.settle()
    [done] = [done for told in world.client.answers if isinstance(told, m.TasksDone) for done in told.tasks]
    assert done.result == b"right"


# --------------------------------------------------------------------------------------------------- what must not grow


def test_questions_for_output_that_is_never_given() -> None:
    """A client asks a silent worker for output, again and again, and goes."""
    world = World()
    for _ in range(50):
        world.from_client(packed([["ReadLog", n, world.task_id] for n in range(500)]))
    assert len(world.service._outputs) <= 1000
    world.hang_up()
    assert not world.service._outputs, "who is gone has no questions"
    world.look()


def test_watches_without_end() -> None:
    world = World()
    for _ in range(30):
        world.from_client(packed([["WatchTasks", n, {"ids": [world.task_id]}] for n in range(100)]))
    [end] = world.clients
    assert len(end.protocol.watches) <= 1000
    world.look()


def test_client_that_never_reads() -> None:
    world = World()
    for _ in range(60):
        world.from_client(packed([["GetStats", n] for n in range(300)]), deaf=True)
    world.look()
    [end] = world.clients
    assert end.protocol.under_way <= INTAKE_MAX
    assert end.protocol.is_paused


@pytest.mark.parametrize(
    ("send", "message"),
    [
        (World.from_client, ["GetStats", 1]),
        (World.from_client, ["CancelTasks", 1, {"job": "none"}]),
        (World.from_client, ["ListHistory", 1]),
        (World.from_worker, ["Heartbeat", []]),
        (World.from_worker, ["AttemptsFinished", 1, []]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_flood_is_taken_in_bit_by_bit(send: Callable[[World, bytes], None], message: list[Any]) -> None:
    """However much one peer sends at once, only a little of it stands before what others send."""
    world = World()
    ahead: list[int] = []
    settle = world.settle

    def look(seconds: float = 0.0) -> None:
        loop = world.service.loop
        ahead.append(len(loop._inbox) + sum(map(len, loop._queries.values())))
        settle(seconds)

    world.settle = look  # type: ignore[method-assign]
    send(world, packed([message] * 5000))
    assert 1 <= max(ahead) <= INTAKE_MAX + 1
    world.look()


def test_who_sends_a_lot_is_read_again_a_moment_later() -> None:
    world = World()
    end = End(world)
    end.frame(CLIENT_HELLO)
    world.settle()
    end.send((1 << 20).to_bytes(4, "big") + bytes(GREEDY_BYTES))
    world.settle(GREEDY_REST_S / 2)
    assert end.is_paused
    world.settle(GREEDY_REST_S)
    assert not end.is_paused
    end.send(b"\0")
    assert not end.is_paused, "a little is no reason"


@pytest.mark.parametrize("ending", ["gone", "garbage"])
def test_what_nobody_waits_for_is_not_all_taken_in(ending: str) -> None:
    world = World()
    end = End(world, listens=True)
    end.frame(CLIENT_HELLO)
    end.send(frame([m.CancelTasks(n, m.Selection(job="none")) for n in range(5000)]))
    assert end.protocol.under_way <= INTAKE_MAX + MESSAGE_WEIGHT
    if ending == "gone":
        end.protocol.connection_lost(None)
    else:
        end.is_paused = False
        end.send(b"\xff\xff\xff\xff")
    assert LAST_INTAKE_MAX <= end.protocol.under_way <= LAST_INTAKE_MAX + MESSAGE_WEIGHT
    world.settle()
    world.look()


def test_frames_in_one_piece_with_garbage_are_done() -> None:
    world = World()
    end = End(world, listens=True)
    end.frame(CLIENT_HELLO)
    end.send(frame([m.GetStats(1)]) + b"\xff\xff\xff\xff")
    assert end.protocol.under_way == 1


class Slow(End):
    """A peer that does not read: a connection that is closed stays until what was written has gone."""

    is_closing = False

    def close(self) -> None:
        self.is_closing = True


def test_who_does_not_read_why_it_is_sent_away_is_cut_off() -> None:
    world = World()
    end = Slow(world, deaf=True)
    end.frame(CLIENT_HELLO)
    world.settle()
    end.send(b"\xff\xff\xff\xff")
    world.settle(world.settings.server.stop_timeout_s - 1.0)
    assert end.is_closing
    assert not end.is_over
    end.protocol.send(m.HeartbeatReply(1.0))
    assert not end.protocol._outbox, "nothing is kept for it"
    world.settle(2.0)
    assert end.is_over


def test_frame_is_looked_into_when_those_before_it_are_done_with() -> None:
    world = World()
    end = End(world, listens=True)
    end.frame(CLIENT_HELLO)
    good, bad = frame([m.GetStats(n) for n in range(3 * INTAKE_MAX)]), frame(["what?"])
    end.send(good + bad)
    world.settle()
    stats = [answer.request for answer in end.answers if isinstance(answer, m.Stats)]
    assert stats == list(range(3 * INTAKE_MAX))
    assert isinstance(end.answers[-1], m.Refused)


def test_what_was_sent_before_hanging_up_is_done() -> None:
    world = World()
    end = End(world)
    end.frame(packed(m.Hello(m.PROTOCOL, "fuzz", m.ClientHello())))
    end.send(frame([m.Submit(n, [plain_spec()], [m.TaskEntry(0)]) for n in range(150)]))
    end.hang_up()
    world.settle()
    assert world.engine.counters.submitted == 1 + 150


def plain_spec() -> m.TaskSpec:
    return m.TaskSpec(Call(path="a:b"))


def frame(messages: list[Any]) -> bytes:
    body = packed(messages)
    return len(body).to_bytes(4, "big") + body
