"""Exit codes, all in one place: scripts rely on them."""

from __future__ import annotations

from enum import IntEnum

from schedd.errors import (
    AuthenticationError,
    ConfigError,
    ConnectionLost,
    JournalError,
    RemoteProtocolError,
    RequestRefused,
    ScheddError,
    TaskFailed,
    TraceError,
)


class Exit(IntEnum):
    """What a `schedd` command answers to the shell."""

    OK = 0
    #: A task that was waited for did not succeed.
    FAILED_TASKS = 1
    #: The command line, a job file or a trace makes no sense.
    USAGE = 2
    #: No daemon answered at the address, or what answered is none.
    NO_DAEMON = 3
    #: The daemon understood and declined.
    REFUSED = 4
    #: No such task, job or worker.
    NOT_FOUND = 5
    #: The time given with --timeout was not enough.
    TIMEOUT = 6
    #: A settings file cannot be used, or something that the command needs is not installed.
    CONFIG = 7
    #: A journal is damaged, or cannot be read or written.
    JOURNAL = 8
    #: The daemon cannot listen where it should.
    LISTEN = 9
    #: We do not know who the daemon is, or it does not let us: certificates, tokens, roles.
    DENIED = 10
    #: A bug of ours, as in sysexits.h.
    BUG = 70
    #: The output cannot be written, as in sysexits.h.
    OUTPUT = 74
    #: As a shell reports a death by SIGINT.
    INTERRUPTED = 130
    #: As a shell reports a death by SIGPIPE.
    BROKEN_PIPE = 141


#: Codes of `RequestRefused` that mean that a thing does not exist.
_NOT_FOUND = frozenset({"unknown_task", "unknown_worker", "unknown_job"})
#: And that a token or a role is not what it should be.
_DENIED = frozenset(
    {
        "auth_required",
        "bad_token",
        "token_revoked",
        "forbidden",
        "tls_required",
        "tls_not_spoken",
        "certificate_required",
    }
)


def exit_for(error: ScheddError) -> Exit:
    """Choose the exit code that tells this error from others."""
    match error:
        case ConfigError():
            return Exit.CONFIG
        case TraceError():
            return Exit.USAGE
        case JournalError():
            return Exit.JOURNAL
        case AuthenticationError():
            return Exit.DENIED
        case ConnectionLost() | RemoteProtocolError():
            return Exit.NO_DAEMON
        case RequestRefused(code="bad_config"):
            return Exit.CONFIG
        case RequestRefused(code=code) if code in _DENIED:
            return Exit.DENIED
        case RequestRefused(code=code) if code in _NOT_FOUND:
            return Exit.NOT_FOUND
        case TaskFailed():
            return Exit.FAILED_TASKS
        case _:
            return Exit.REFUSED
