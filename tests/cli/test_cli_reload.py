"""`schedd reload`: what has changed goes to stdout, what needs a restart to stderr, a bad file is an exit code."""

from __future__ import annotations

from schedd.cli.exits import Exit
from schedd.server.daemon import EXITS
from schedd.wire import messages as wire

from .conftest import Run
from .fake_daemon import FakeDaemon


def test_reload(daemon: FakeDaemon, run: Run) -> None:
    daemon.answers[wire.Reload] = lambda request: wire.Reloaded(
        request.request, ['policy.name = "batch" (was "fifo")'], ["server.listen"]
    )
    ran = run("reload")
    assert (ran.code, ran.out) == (Exit.OK, 'policy.name = "batch" (was "fifo")\n')
    assert ran.err == "server.listen counts when the daemon is started anew\n"
    assert run("reload", "--json").json() == {
        "changed": ['policy.name = "batch" (was "fifo")'],
        "needs_restart": ["server.listen"],
    }


def test_nothing_has_changed(daemon: FakeDaemon, run: Run) -> None:
    daemon.answers[wire.Reload] = lambda request: wire.Reloaded(request.request, [], [])
    ran = run("reload")
    assert (ran.code, ran.out, ran.err) == (Exit.OK, "", "nothing has changed\n")


def test_bad_file(daemon: FakeDaemon, run: Run) -> None:
    daemon.fail(wire.Reload, wire.BAD_CONFIG, "config.toml: log.levle is not a key of [log]", "did you mean 'level'?")
    ran = run("reload")
    assert (ran.code, ran.err) == (
        Exit.CONFIG,
        "error: config.toml: log.levle is not a key of [log]\nhint: did you mean 'level'?\n",
    )


def test_a_start_that_fails_ends_with_the_same_codes() -> None:
    assert list(EXITS.values()) == [Exit.CONFIG, Exit.JOURNAL, Exit.LISTEN]
