"""A peer that was welcomed and then breaks the protocol: it is refused, and nobody else notices."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from schedd.core.model import Call, Command
from schedd.wire import messages as m
from schedd.wire.framing import FRAME_BYTES_MAX, encode_frame

from .peers import RawClient, RawPeer, RawWorker

pack = msgspec.msgpack.encode
SELECTION: dict[str, Any] = {}
CALL = {"type": "call", "path": "a:b"}


def frame_of(value: Any) -> bytes:
    body = pack(value)
    return len(body).to_bytes(4, "big") + body


def submit(spec: dict[str, Any], *entries: Any) -> list[Any]:
    return ["Submit", 1, [{"payload": CALL, **spec}], list(entries) or [[0]]]


def raw(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


FROM_ANYBODY: dict[str, bytes] = {
    "empty body": raw(b""),
    "no list": frame_of({"a": 1}),
    "a number": frame_of(7),
    "invalid MessagePack": raw(b"\xc1"),
    "a cut body": raw(encode_frame([m.GetStats(1)])[4:-1]),
    "bytes after the list": raw(encode_frame([m.GetStats(1)])[4:] + b"\x00"),
    "deep nesting": raw(b"\x91" * 500_000 + b"\xc0"),
    "deep maps": raw(b"\x91\x81\xa1a" * 200_000 + b"\xc0"),
    "a list of four billion": raw(b"\xdd\xff\xff\xff\xff"),
    "too large a frame": (FRAME_BYTES_MAX + 1).to_bytes(4, "big"),
    "unknown message": frame_of([["FormatDisk", 1]]),
    "a message of the other direction": encode_frame([m.Welcome(1, "", 1)]),
    "no tag": frame_of([[]]),
    "a tag that is a number": frame_of([[1, 2]]),
    "random": raw(random.Random(7).randbytes(5000)),
}

FROM_CLIENT: dict[str, bytes] = {
    "a message of workers": encode_frame([m.WorkerGoodbye()]),
    "missing fields": frame_of([["ExplainTask", 1]]),
    "request is a text": frame_of([["GetStats", "1"]]),
    "request is missing": frame_of([["GetStats"]]),
    "request is NaN": frame_of([["GetStats", math.nan]]),
    "selection is a list": frame_of([["CancelTasks", 1, []]]),
    "ids are texts": frame_of([["CancelTasks", 1, {"ids": ["1"]}]]),
    "id is half": frame_of([["ExplainTask", 1, 0.5]]),
    "payload without type": frame_of([["Submit", 1, [{"payload": {"argv": []}}], [[0]]]]),
    "payload of unknown type": frame_of([["Submit", 1, [{"payload": {"type": "shell"}}], [[0]]]]),
    "argv is a text": frame_of([["Submit", 1, [{"payload": {"type": "command", "argv": "ls"}}], [[0]]]]),
    "no spec's payload": frame_of([["Submit", 1, [{}], [[0]]]]),
    "negative GPUs": frame_of([submit({"requirements": {"min_gpus": -1}})]),
    "NaN GPUs": frame_of([submit({"requirements": {"min_gpus": math.nan}})]),
    "half a GPU too many": frame_of([submit({"requirements": {"min_gpus": 1.5}})]),
    "infinite CPUs": frame_of([submit({"requirements": {"cpus": math.inf}})]),
    "negative RAM": frame_of([submit({"requirements": {"ram": -0.5}})]),
    "huge RAM": frame_of([submit({"requirements": {"ram": 1e308}})]),
    "negative estimate": frame_of([submit({"requirements": {"estimated_time": -1.0}})]),
    "negative custom": frame_of([submit({"requirements": {"custom": {"x": -1}}})]),
    "variants of variants": frame_of([submit({"requirements": {"variants": [{"variants": [{}]}]}})]),
    "too many variants": frame_of([submit({"requirements": {"variants": [{}] * 65}})]),
    "too many labels": frame_of([submit({"requirements": {"labels": {str(n): "" for n in range(10_001)}}})]),
    "too many ids": frame_of([["CancelTasks", 1, {"ids": [1] * 1_000_001}]]),
    "negative timeout": frame_of([submit({"rules": {"timeout_s": -1}})]),
    "timeout of zero": frame_of([submit({"rules": {"timeout_s": 0}})]),
    "NaN timeout": frame_of([submit({"rules": {"timeout_s": math.nan}})]),
    "negative retries": frame_of([submit({"rules": {"retries": -1}})]),
    "huge retries": frame_of([submit({"rules": {"retries": 2**63}})]),
    "NaN grace": frame_of([submit({"rules": {"grace_s": math.nan}})]),
    "entry without spec": frame_of([submit({}, [])]),
    "drain of a number": frame_of([["DrainWorkers", 1, [1]]]),
    "text that is not UTF-8": raw(
        pack([["ReadLog", 1, 1, 1, "stdout"]]).replace(b"stdout", b"\xff\xfe\xfd\xfc\xfb\xfa")
    ),
}

FROM_WORKER: dict[str, bytes] = {
    "a message of clients": encode_frame([m.GetStats(1)]),
    "no usage": frame_of([["Heartbeat"]]),
    "usage of texts": frame_of([["Heartbeat", ["a", "b"]]]),
    "ended in a new way": frame_of([["AttemptsFinished", 1, [[1, 1, "exploded", 0, 0]]]]),
    "started a text": frame_of([["AttemptsStarted", [["1", 1, 0]]]]),
    "devices are texts": frame_of([["AttemptsStarted", [[1, 1, 0, ["GPU-0"]]]]]),
    "answers of two": frame_of([["RevokeAnswers", [[1, 1]]]]),
    "a result of a map": frame_of([["AttemptsFinished", 1, [[1, 1, "ok", 0, 0, {}]]]]),
    "metrics of lists": frame_of([["AttemptReports", [[1, 1, 1, {"a": [1]}]]]]),
}


@pytest.fixture
def bystander(client: RawClient) -> Callable[[], None]:
    """Checks that somebody else is still served."""

    def check() -> None:
        assert isinstance(client.ask(m.GetStats), m.Stats)
        [task_id] = client.submit(hold=True)
        assert client.state_of(task_id) == "held"
        assert client.ask(m.CancelTasks, m.Selection(ids=[task_id])).changed == 1

    return check


def assert_refused(peer: RawPeer, data: bytes) -> None:
    peer.write(data)
    refused = peer.expect_refusal()
    assert refused.code == m.BAD_REQUEST
    assert refused.message


@pytest.mark.parametrize("case", [*FROM_ANYBODY, *FROM_CLIENT])
def test_malformed_client(address: str, bystander: Callable[[], None], case: str) -> None:
    with RawClient(address) as peer:
        assert_refused(peer, {**FROM_ANYBODY, **FROM_CLIENT}[case])
    bystander()


@pytest.mark.parametrize("case", [*FROM_ANYBODY, *FROM_WORKER])
def test_malformed_worker(address: str, name: str, bystander: Callable[[], None], case: str) -> None:
    with RawWorker(address, name) as peer:
        assert_refused(peer, {**FROM_ANYBODY, **FROM_WORKER}[case])
    bystander()


def test_what_came_before_the_bad_frame_is_done(address: str, client: RawClient) -> None:
    spec = m.TaskSpec(Call(path="a:b"), job="before-the-bad", hold=True)
    with RawClient(address) as peer:
        peer.write(encode_frame([m.Submit(1, [spec], [m.TaskEntry(0)])]) + raw(b"\xc1"))
        peer.expect_refusal()
    answer = client.ask(m.ListTasks, m.Selection(job="before-the-bad"))
    assert [task.state for task in answer.tasks] == ["held"]


def test_bad_frame_is_taken_as_a_whole(address: str, client: RawClient) -> None:
    spec = m.TaskSpec(Call(path="a:b"), job="in-the-bad", hold=True)
    with RawClient(address) as peer:
        body = pack([m.Submit(1, [spec], [m.TaskEntry(0)]), ["FormatDisk"]])
        peer.write(raw(body))
        peer.expect_refusal()
    assert client.ask(m.ListTasks, m.Selection(job="in-the-bad")).tasks == []


def test_random_frames(address: str, bystander: Callable[[], None]) -> None:
    """Valid frames with bytes changed at random: an answer or a refusal, never the end of the daemon."""
    rng = random.Random(20)
    spec = m.TaskSpec(Command(["true"]), job="fuzz", hold=True)
    good = encode_frame(
        [
            m.Submit(1, [spec], [m.TaskEntry(0, b"x"), m.TaskEntry(0, after=[-1])], True),
            m.ListTasks(2, m.Selection(job="fuzz"), detail=True),
            m.SetTasks(3, m.Selection(job="fuzz"), 2.0),
            m.CancelTasks(4, m.Selection(job="fuzz")),
        ]
    )
    for _ in range(150):
        body = bytearray(good[4:])
        for _ in range(rng.randint(1, 4)):
            body[rng.randrange(len(body))] = rng.randrange(256)
        with RawClient(address) as peer:
            peer.write(raw(bytes(body)))
            peer.write(encode_frame([m.GetStats(99)]))
            while True:
                if any(
                    isinstance(message, m.Refused) or getattr(message, "request", 0) == 99 for message in peer.inbox
                ):
                    break
                assert peer.fill()
    bystander()
