"""The house has walls: which room may import what, and what the pure core never touches."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "schedd"
FILES = sorted(ROOT.rglob("*.py"))

#: In the core a module imports only from those above it.
CORE_ORDER = [
    "model", "pages", "needs", "capacity", "classes", "events", "effects", "timers", "stats", "retries", "settings",
    "verdicts", "health", "memory", "queue", "resources", "members", "submits", "tasks", "policies", "steals", "claims",
    "placement", "shadow", "tables", "guard", "preemption", "stealing", "requests", "attempts", "fleet", "explain",
    "restore", "change", "engine",
]  # fmt: skip
POLICY_ORDER = [
    "base",
    "preemption",
    "profiles",
    "beliefs",
    "peculiar",
    "experience",
    "groups",
    "arrivals",
    "prices",
    "market",
    "flow",
    "packing",
    "fifo",
    "priority",
    "load_balancing",
    "work_stealing",
    "adaptive",
    "batch",
    "__init__",
]
#: Policies know nothing of each other, only what stands before `fifo`.
POLICY_MAY = {"core.model", "core.needs", "core.capacity", "core.stats"} | {
    f"core.policies.{helper}" for helper in POLICY_ORDER[: POLICY_ORDER.index("fifo")]
}

#: What a room may import of schedd, beside itself; a longer name counts before a shorter one.
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "log": set(),
    "address": {"errors"},
    "keepalive": set(),
    "tally": set(),
    "notify": set(),
    # It looks at what is installed: only where a file names a policy that is not built in.
    "plugins": {"errors", "core.policies"},
    "testing": {"core"},
    "config": {"errors", "address", "core.policies", "plugins"},
    "core": {"errors"},
    "wire": {"core.model", "errors"},
    # What a peer shows of itself, and TLS: files, and the pure part of the proof.
    "credentials": {"errors", "wire.auth"},
    "tls": {"errors", "credentials"},
    "assembly": {"config", "core"},
    # A replay is made of facts, and of what is remembered of tasks: rows of a journal, which others read from its file.
    "simulate": {"core", "config", "assembly", "errors", "demo.asha", "journal.records"},
    "journal": {"core", "errors", "config", "log", "tally"},
    "server": {
        *("core", "assembly", "wire", "journal", "config", "log", "errors", "address", "keepalive", "notify", "tally"),
        *("credentials", "tls"),
    },
    "worker": {
        *(
            "wire",
            "core.model",
            "core.needs",
            "core.capacity",
            "config",
            "log",
            "errors",
            "address",
            "notify",
            "credentials",
            "tls",
        ),
    },
    "client": {"wire", "core.model", "config", "log", "errors", "address", "keepalive", "credentials", "tls"},
    # The service and its connections do no I/O and know no clock: loop, clock, dice, journal and archive are given to
    # them (`server.ports`). So the simulation runs the daemon's own seams, and no second writing of them.
    "sim": {
        "core",
        "worker.state",
        "worker.attempts",
        "worker.heartbeats",
        "worker.outbox",
        "wire",
        "journal.records",
        "config",
        "errors",
        "server.service",
        "server.connections",
    },
    # The daemon in a box, once more, among liars; and the readers of files.
    "fuzz": {
        "core",
        "wire",
        "config",
        "errors",
        "assembly",
        "journal.records",
        "server.access",
        "server.service",
        "server.connections",
        "sim",
        "cli.jobfile",
        "cli.options",
        "cli.taskspec",
    },
}
#: Never in the core: it does no I/O and knows no clock.
IMPURE = {
    "asyncio", "anyio", "socket", "os", "pathlib", "time", "datetime", "logging", "threading", "subprocess", "psutil",
    "pynvml", "sys", "io", "secrets", "uuid",
}  # fmt: skip
#: Of `random`, the core may only name the generator that it is given.
RANDOM_MAY = {"Random"}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def room_of(module: str) -> str:
    return module.split(".")[0]


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Each module that a file imports, and whether only inside a function."""

    def walk(node: ast.AST, inside: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            deeper = inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue
            if isinstance(child, ast.Import):
                yield from ((alias.name, inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative import"
                module = child.module or ""
                for alias in child.names:
                    below = ROOT.parent / Path(*module.split("."), alias.name)
                    is_module = below.with_suffix(".py").exists() or below.is_dir()
                    yield (f"{module}.{alias.name}" if is_module else module, inside)
            yield from walk(child, deeper)

    yield from walk(parse(path), False)


def ours(path: Path) -> Iterator[tuple[str, bool]]:
    """Modules of schedd that a file imports, without "schedd."."""
    for module, inside in imports(path):
        if module.startswith("schedd."):
            yield module.removeprefix("schedd."), inside


def allowed(module: str, may: set[str]) -> bool:
    return any(module == entry or module.startswith(entry + ".") for entry in may)


every_file = pytest.mark.parametrize("path", FILES, ids=name_of)
core_files = pytest.mark.parametrize("path", [p for p in FILES if room_of(name_of(p)) == "core"], ids=name_of)


@every_file
def test_rooms(path: Path) -> None:
    room = room_of(name_of(path))
    if room not in ROOMS:
        return
    for module, _ in ours(path):
        if room_of(module) != room:
            assert allowed(module, ROOMS[room]), f"{name_of(path)} imports {module}"


@pytest.mark.parametrize("path", [p for p in FILES if room_of(name_of(p)) == "cli"], ids=name_of)
def test_cli_starts_rooms_only_inside_a_command(path: Path) -> None:
    always = {
        "cli",
        "client",
        "core.model",
        "core.policies",
        "config",
        "errors",
        "address",
        "log",
        "wire",
        "demo",
        "credentials",
    }
    for module, inside in ours(path):
        assert module != "core.engine", name_of(path)
        assert allowed(module, always) or inside, f"{name_of(path)} imports {module} at its top"


@core_files
def test_core_imports_upwards_only(path: Path) -> None:
    name = name_of(path).removeprefix("core.")
    if name == "__init__":
        return
    own = name.split(".")[0]
    for module, _ in ours(path):
        if not module.startswith("core."):
            continue
        other = module.removeprefix("core.").split(".")[0]
        if own == other == "policies":
            continue
        # The Protocols of `base` are what queue and placement speak to a policy by.
        assert CORE_ORDER.index(other) < CORE_ORDER.index(own), f"{name_of(path)} imports {module}"


@pytest.mark.parametrize("path", sorted((ROOT / "core" / "policies").glob("*.py")), ids=name_of)
def test_policies_know_only_what_they_need(path: Path) -> None:
    name = path.stem
    for module, _ in ours(path):
        if name == "__init__":
            assert module.startswith("core.policies."), module
        else:
            assert module in POLICY_MAY, f"{name} imports {module}"
    assert name in POLICY_ORDER


@core_files
def test_core_is_pure(path: Path) -> None:
    for module, _ in imports(path):
        assert module.split(".")[0] not in IMPURE, f"{name_of(path)} imports {module}"
        # `adaptive` has a generator of its own, with a seed of its own, so that nothing else depends on what it draws.
        may_draw = name_of(path) in ("core.tables", "core.engine", "core.policies.adaptive")
        assert module != "random" or may_draw, name_of(path)
    for node in ast.walk(parse(path)):
        assert not isinstance(node, ast.Await | ast.AsyncFunctionDef | ast.AsyncFor | ast.AsyncWith), name_of(path)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "random":
            assert node.attr in RANDOM_MAY, f"{name_of(path)} uses random.{node.attr}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("open", "input", "print", "hash"), f"{name_of(path)}: {node.func.id}()"


def classes_of(path: Path) -> Iterator[tuple[str, set[str]]]:
    """The classes that a file defines, each with the names of what it extends."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ClassDef):
            bases = (base.value if isinstance(base, ast.Subscript) else base for base in node.bases)
            yield node.name, {ast.unparse(base) for base in bases}


def test_what_is_compiled_can_be() -> None:
    """A compiled class extends none of C and no struct, and no other than a compiled class extends it."""
    configured = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))
    modules = configured["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["custom"]["modules"]
    compiled = {ROOT.parent / module for module in modules}
    assert compiled <= set(FILES)
    names = {name for path in compiled for name, _ in classes_of(path)}
    for path in FILES:
        for name, bases in classes_of(path):
            if path in compiled:
                assert bases <= names | {"Exception", "Generic"}, f"{name_of(path)}.{name} extends {bases}"
            else:
                assert not bases & names, f"{name_of(path)}.{name} extends {bases}"


@pytest.mark.parametrize("path", sorted((ROOT / "sim").glob("*.py")), ids=name_of)
def test_simulation_knows_no_real_time_and_no_real_chance(path: Path) -> None:
    for module, _ in imports(path):
        name = module.split(".")[0]
        assert name not in IMPURE - {"logging", "sys"} or (name_of(path), name) == ("sim.__main__", "time"), module
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "random":
            assert node.attr in RANDOM_MAY, f"{name_of(path)} uses random.{node.attr}"


@every_file
def test_print_only_in_output(path: Path) -> None:
    if name_of(path) == "cli.output":
        return
    calls = [node for node in ast.walk(parse(path)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert not any(call.func.id == "print" for call in calls if isinstance(call.func, ast.Name)), name_of(path)


@every_file
def test_every_module_says_what_it_is(path: Path) -> None:
    tree = parse(path)
    assert not tree.body or ast.get_docstring(tree), name_of(path)


def test_server_knows_no_hardware() -> None:
    for path in (ROOT / "server").rglob("*.py"):
        for module, _ in imports(path):
            assert module.split(".")[0] not in ("psutil", "pynvml"), name_of(path)


def test_daemon_never_unpickles() -> None:
    for room in ("core", "server", "wire", "journal"):
        for path in (ROOT / room).rglob("*.py"):
            for module, _ in imports(path):
                assert module.split(".")[0] not in ("pickle", "cloudpickle", "dill"), name_of(path)
