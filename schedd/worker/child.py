"""A child process of the worker: runs calls, one at a time, for as long as the worker has some.

What a call gives to the client (`AttemptFinished.result`), the contract of both sides:

- cause `ok`: a pickle of the value. `pickle.loads` opens it; it may need cloudpickle to be importable.
- cause `error` (also `oom_gpu`, `oom_host`) from an exception: `wire.raised.Raised`, a pickle of the exception and its
  traceback. The exception is always an instance of `Exception`; one that cannot be pickled, or is none (`SystemExit`),
  is replaced by a `RuntimeError` whose text is "TypeName: message". The client raises it with the traceback as its
  `__cause__`, as `concurrent.futures` does.
- any other end (the process died, a result that cannot be pickled or is too large): no result; `message` says why.

`AttemptFinished.message` is one line for people: "ValueError: bad lr".

While a call runs, descriptors 1 and 2 are a pair of files of this child's; if something was written they are renamed to
the attempt's log files at its end, so a call without output costs no file.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import pickle
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import cloudpickle
import msgspec
from msgspec import structs

from schedd.core.model import Cause
from schedd.wire.raised import encode_raised, shorten
from schedd.worker import task_api
from schedd.worker.child_messages import (
    INLINE_BYTES_MAX,
    PACKET_BYTES_MAX,
    CallEnded,
    CallReport,
    ChildOptions,
    ChildReady,
    Spooled,
    StartCall,
    encode,
    read_spooled,
    spool,
)
from schedd.worker.processes import PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG, prctl
from schedd.worker.stop_flag import StopFlag
from schedd.worker.symptoms import names_and_texts, out_of_memory

CHANNEL_FD = 3
OUTPUTS = ((1, "stdout"), (2, "stderr"))
#: Says which devices are a call's.
DEVICES = "CUDA_VISIBLE_DEVICES"
MESSAGE_CHARS_MAX = 500
#: Of an exception that is too large to send, so much of the traceback is kept.
TRACEBACK_CHARS_MAX = 10_000
LOG_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
_decoder = msgspec.msgpack.Decoder(StartCall | Spooled)


class Runner:
    """Runs the calls that come in through the channel."""

    def __init__(self, channel: socket.socket, options: ChildOptions) -> None:
        self._channel = channel
        self._options = options
        #: By number: a function, or its bytes as long as they could not be loaded.
        self._functions: dict[int, Callable[..., Any] | bytes] = {}
        self._imported: dict[str, Callable[..., Any]] = {}
        self._stop = StopFlag(f"{options.output}.stop")
        self._home = os.open(".", os.O_RDONLY | os.O_CLOEXEC)
        self._call: StartCall | None = None
        self._spooled_count = 0
        self._pid = os.getpid()
        #: Attempt, job and kind that the environment tells of now.
        self._environment = (0, "", "")
        self._streams = (sys.stdout, sys.stderr)
        #: The devices that calls here have.
        self._devices = os.environ.get(DEVICES)
        #: Whether a call has closed what the next one would write to.
        self._is_spoiled = False

    def serve(self) -> None:
        """Run calls until the worker closes the channel."""
        buffer = bytearray(PACKET_BYTES_MAX)
        view = memoryview(buffer)
        self._send(ChildReady())
        while size := self._channel.recv_into(buffer):
            call = _decoder.decode(view[:size])
            if isinstance(call, Spooled):
                call = _decoder.decode(read_spooled(call))
            assert isinstance(call, StartCall)
            self._run(call)

    def report(self, step: int, metrics: dict[str, float]) -> None:
        if self._call is not None:
            self._send(CallReport(self._call.task_id, self._call.attempt, step, metrics))

    def should_stop(self) -> bool:
        return self._call is not None and self._stop.look()

    def _run(self, call: StartCall) -> None:
        self._call = call
        self._stop.forget()
        self._set_environment(call)
        started_at_ns = time.monotonic_ns()
        cause, result, message = self._outcome(call)
        finished_at_ns = time.monotonic_ns()
        if os.getpid() != self._pid:
            # The call forked, and this is the copy that came back: the calls are not its.
            os._exit(0)
        self._call = None
        has_output = self._tidy(call)
        leftovers = _has_children() or self._is_spoiled
        self._send(
            CallEnded(
                call.task_id,
                call.attempt,
                cause,
                result,
                message,
                started_at_ns,
                finished_at_ns,
                has_output,
                leftovers,
            )
        )
        if leftovers:
            # What the call left ends with this process, its parent; the next call gets a fresh one.
            os._exit(0)

    def _set_environment(self, call: StartCall) -> None:
        os.environ["SCHEDD_TASK_ID"] = str(call.task_id)
        # An assignment costs a putenv, and most calls in a row are of one job and kind.
        rest = (call.attempt, call.job, call.kind)
        if rest != self._environment:
            self._environment = rest
            os.environ["SCHEDD_ATTEMPT"] = str(call.attempt)
            os.environ["SCHEDD_JOB"] = call.job
            os.environ["SCHEDD_KIND"] = call.kind

    def _outcome(self, call: StartCall) -> tuple[Cause, bytes | None, str]:
        try:
            function = self._function_of(call)
            args, kwargs = pickle.loads(call.argument) if call.argument else ((), {})
            value = function(*args, **kwargs)
        except BaseException as error:
            try:
                return self._failure(error)
            except BaseException:  # no memory is left, or the exception lets nobody look at it
                cause = Cause.OOM_HOST if isinstance(error, MemoryError) else Cause.ERROR
                return cause, None, type(error).__name__
        try:
            result = _pickle(value)
        except BaseException as error:  # it runs foreign code: not even its SystemExit may end this process
            kind = type(value).__qualname__
            return Cause.ERROR, None, _line(f"a result of type {kind} cannot be pickled: {_describe(error)}")
        if len(result) > self._options.result_bytes_max:
            size, bound = (each / (1024 * 1024) for each in (len(result), self._options.result_bytes_max))
            return Cause.ERROR, None, f"result of {size:.1f} MB is above the bound of {bound:g} MB"
        return Cause.OK, result, ""

    def _function_of(self, call: StartCall) -> Callable[..., Any]:
        for number in call.forget:
            self._functions.pop(number, None)
        if call.path:
            if call.path not in self._imported:
                self._imported[call.path] = _import(call.path)
            return self._imported[call.path]
        if call.function:
            self._functions[call.number] = call.function
        function = self._functions[call.number]
        if isinstance(function, bytes):
            # The worker counts on us to know it from here on, so each call tries again and fails for its own reason.
            function = self._functions[call.number] = pickle.loads(function)
        return function

    def _failure(self, error: BaseException) -> tuple[Cause, bytes | None, str]:
        # The first frame is ours. What others hold may be all the memory that there is.
        frames = error.__traceback__.tb_next if error.__traceback__ is not None else None
        traceback.clear_frames(frames)
        text = "".join(traceback.format_exception(type(error), error, frames))
        # Where the same object is raised again its traceback would grow, and hold all that it went through.
        error.__traceback__ = None
        message = _describe(error)
        if isinstance(error, ImportError):
            message += f" (on worker {self._options.worker})"
        result = encode_raised(_pickle_exception(error), text)
        if len(result) > self._options.result_bytes_max:
            result = encode_raised(_pickle_description(error), shorten(text, TRACEBACK_CHARS_MAX))
        return _cause_of(error), result, _line(message)

    def _tidy(self, call: StartCall) -> bool:
        """Undo what a call may have left for the next one, and put its output where it belongs; False without any."""
        has_output = False
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except Exception:
            # The call has closed or replaced it, or the disk is full.
            pass
        if (sys.stdout, sys.stderr) != self._streams:
            sys.stdout, sys.stderr = self._streams
        self._is_spoiled = sys.stdout.closed or sys.stderr.closed
        if os.environ.get(DEVICES) != self._devices:
            os.environ.pop(DEVICES, None)
            if self._devices is not None:
                os.environ[DEVICES] = self._devices
        for fd, stream in OUTPUTS:
            try:
                if os.fstat(fd).st_size:
                    self._move_output(fd, stream, call)
                    has_output = True
            except OSError:
                # The call has closed it, or its file is gone.
                self._is_spoiled = True
        os.chdir(self._home)
        return has_output

    def _move_output(self, fd: int, stream: str, call: StartCall) -> None:
        output = f"{self._options.output}.{stream}"
        os.rename(output, f"{self._options.log_folder}/{call.task_id}.{call.attempt}.{stream}")  # noqa: PTH104
        fresh = os.open(output, LOG_FLAGS, 0o600)
        os.dup2(fresh, fd)
        os.close(fresh)

    def _send(self, message: ChildReady | CallReport | CallEnded) -> None:
        packet = encode(message)
        if len(packet) > INLINE_BYTES_MAX:
            self._spooled_count += 1
            try:
                packet = spool(packet, f"{self._options.output}.{self._spooled_count}")
            except OSError as error:
                if not isinstance(message, CallEnded):
                    return
                note = f"the result cannot be stored: {error}"
                packet = encode(structs.replace(message, cause=Cause.ERROR, result=None, message=note))
        self._channel.send(packet)


def _import(path: str) -> Callable[..., Any]:
    module_name, _, attributes = path.partition(":")
    found: Any = importlib.import_module(module_name)
    for attribute in attributes.split("."):
        found = getattr(found, attribute)
    if not callable(found):
        raise TypeError(f"{path} is not callable")
    function: Callable[..., Any] = found
    return function


def _pickle(value: Any) -> bytes:
    """Pickle by reference where that works, which is ten times cheaper, and by value where it does not."""
    try:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception:
        data: bytes = cloudpickle.dumps(value)
        return data


def _pickle_exception(error: BaseException) -> bytes:
    if isinstance(error, Exception):
        try:
            data = _pickle(error)
            # Many an exception can be pickled and not be opened again: its arguments are not those of its __init__.
            if isinstance(pickle.loads(data), Exception):
                return data
        except BaseException:  # it runs foreign code: not even its SystemExit may end this process
            pass
    return _pickle_description(error)


def _pickle_description(error: BaseException) -> bytes:
    return pickle.dumps(RuntimeError(_line(_describe(error))), pickle.HIGHEST_PROTOCOL)


def _describe(error: BaseException) -> str:
    try:
        text = str(error)
    except BaseException:
        text = "(its text cannot be had)"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _line(text: str) -> str:
    """Make one bounded line that any peer can encode."""
    line = " ".join(text.split())
    if len(line) > MESSAGE_CHARS_MAX:
        line = line[: MESSAGE_CHARS_MAX - 1] + "…"
    return line.encode(errors="backslashreplace").decode()


def _cause_of(error: BaseException) -> Cause:
    """Why a call failed. An allocator that was refused memory says so by MemoryError, whose word is evidence enough."""
    symptom = out_of_memory(names_and_texts(error))
    if symptom is not None:
        return symptom.cause
    # Pyarrow and others have kinds of it with names of their own.
    return Cause.OOM_HOST if isinstance(error, MemoryError) else Cause.ERROR


def _has_children() -> bool:
    """Tell whether the calls left processes. Those that were only never waited for are reaped."""
    try:
        while os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG) is not None:
            pass
    except ChildProcessError:
        return False
    return True


def main() -> None:
    """Set the process up and serve."""
    options = msgspec.json.decode(sys.argv[1], type=ChildOptions)
    with contextlib.suppress(OSError):
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        # What a call daemonises comes back to us, so that we see that it left something.
        prctl(PR_SET_CHILD_SUBREAPER, 1)
    if os.getppid() != options.parent_pid:
        return
    sys.path[:] = options.path
    sys.argv[1:] = []
    for stream in (sys.stdout, sys.stderr):
        # By line, so that the output of a running call can be followed.
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(line_buffering=True, errors="backslashreplace")
    os.set_inheritable(CHANNEL_FD, False)
    channel = socket.socket(fileno=CHANNEL_FD)
    runner = Runner(channel, options)
    task_api.send_from_call = runner.report
    task_api.stop_of_call = runner.should_stop
    try:
        runner.serve()
    except (BrokenPipeError, ConnectionResetError):
        # The worker is gone.
        return


if __name__ == "__main__":
    main()
