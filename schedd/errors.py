"""The exception tree of schedd. "Not now" and "no" are values; these are for what must not pass unnoticed."""

from __future__ import annotations


class ScheddError(Exception):
    """Base of every error that schedd raises; `hint` says what the user can do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(ScheddError):
    """A settings file cannot be used: it names the file, the key and, where there is one, the nearest valid key."""


class LocalProtocolError(ScheddError):
    """We were about to break the protocol ourselves, for instance by sending a frame above the bound."""


class RemoteProtocolError(ScheddError):
    """The peer broke the protocol: bad length, bad MessagePack, unknown message, wrong version."""


class AuthenticationError(ScheddError):
    """Who is at the other end cannot be believed, or does not believe us: certificates and tokens."""


class ConnectionLost(ScheddError):
    """The daemon cannot be reached, or the connection ended before the answer came."""


class RequestRefused(ScheddError):
    """The daemon understood the request and declined it; `code` is one of the constants in `wire.messages`."""

    def __init__(self, message: str, hint: str = "", code: str = "refused") -> None:
        super().__init__(message, hint)
        self.code = code


class TaskFailed(ScheddError):
    """A task that was waited for did not succeed; `cause` is the cause of its last attempt."""

    def __init__(self, message: str, hint: str = "", cause: str = "error") -> None:
        super().__init__(message, hint)
        self.cause = cause


class TaskCancelled(TaskFailed):
    """A task that was waited for had been cancelled."""


class JournalError(ScheddError):
    """The journal cannot be opened or read: it names the file, and says what can be done about it."""


class TraceError(ScheddError):
    """A trace, or the cluster to run it on, makes no sense: it names the file and the line."""


class InvalidTransition(ScheddError):
    """The engine asked for a change of state that the table does not have: a bug of ours. Carries the task's story."""
