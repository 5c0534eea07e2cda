"""Settings: one TOML file, parsed into frozen Structs, checked as a whole. The only reader of settings.

Each table of `config.toml` is a Struct here, each key a field with its default; an unknown key, a wrong type or a
relation that cannot hold raises ConfigError with the file, the key and the nearest valid key.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast

import msgspec
from msgspec import Meta, Struct, field

from schedd import plugins
from schedd.address import DEFAULT_ADDRESS, Address, parse_address
from schedd.core.policies import POLICIES
from schedd.core.policies.adaptive import AdaptiveParams
from schedd.core.policies.base import TaskScheduler
from schedd.core.policies.batch import BatchParams
from schedd.core.policies.fifo import FIFOParams
from schedd.core.policies.load_balancing import LoadBalancingParams
from schedd.core.policies.priority import PriorityParams
from schedd.core.policies.work_stealing import WorkStealingParams
from schedd.errors import ConfigError

Positive = Annotated[float, Meta(gt=0, le=1e9)]
NotNegative = Annotated[float, Meta(ge=0, le=1e9)]
Count = Annotated[int, Meta(ge=0, le=1_000_000_000)]
AtLeastOne = Annotated[int, Meta(ge=1, le=1_000_000_000)]


class WorkerSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Table [worker]: how `schedd worker` offers its machine. Command-line options win over these."""

    connect: str = ""
    name: str = ""
    cpus: Annotated[float, Meta(gt=0, le=1e5)] | None = None
    ram_gb: Annotated[float, Meta(ge=0, le=1e7)] | None = None
    gpus: Literal["auto", "none"] = "auto"
    labels: dict[str, str] = field(default_factory=dict)
    custom: dict[str, NotNegative] = field(default_factory=dict)
    state_dir: str = ""
    reconnect_delay_s: Positive = 0.2
    reconnect_delay_max_s: Positive = 15.0
    give_up_after_s: NotNegative = 0.0
    drain_timeout_s: NotNegative = 0.0
    child_idle_s: Positive = 300.0
    result_mb_max: Annotated[float, Meta(gt=0, le=63)] = 32.0
    unacknowledged_max: AtLeastOne = 100_000
    unacknowledged_mb_max: Positive = 512.0
    logs_keep_count: AtLeastOne = 2000
    containment: Literal["auto", "cgroup", "namespace", "process-group"] = "auto"
    token_file: str = ""
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    tls_name: str = ""


class ServerSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Table [server]: where the daemon listens, and what it bears of its peers."""

    listen: str = DEFAULT_ADDRESS
    socket: str = ""
    socket_mode: Annotated[int, Meta(ge=0o600, le=0o666)] = 0o600
    insecure: bool = False
    connections_max: AtLeastOne = 10_000
    handshake_timeout_s: Positive = 10.0
    outbox_mb_max: Positive = 256.0
    stop_timeout_s: Positive = 10.0


class AuthSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Table [auth]: who has to prove who they are, and who may do everything."""

    required: bool = False
    tokens: str = ""
    admins: list[str | int] = field(default_factory=list)
    admin_groups: list[str | int] = field(default_factory=list)
    unproven_max: AtLeastOne = 1000
    unproven_per_address_max: AtLeastOne = 100


class TlsSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Table [tls]: by what the daemon shows on TCP that it is the daemon."""

    cert: str = ""
    key: str = ""
    client_ca: str = ""

    @property
    def is_on(self) -> bool:
        return bool(self.cert)


class PolicySettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Table [policy]: which one decides, which is asked beside it, and a table of parameters for each.

    Where a file names a policy that is not built in, its settings are of a subclass with a field for that one too.
    """

    #: The policies that a subclass has added, by name.
    added: ClassVar[Mapping[str, type[TaskScheduler]]] = {}

    name: str = "priority"
    shadow: str = ""
    fifo: FIFOParams = FIFOParams()
    priority: PriorityParams = PriorityParams()
    load_balancing: LoadBalancingParams = LoadBalancingParams()
    work_stealing: WorkStealingParams = WorkStealingParams()
    adaptive: AdaptiveParams = AdaptiveParams()
    batch: BatchParams = BatchParams()

    def build(self) -> TaskScheduler:
        """Make the policy that `name` says, with its table."""
        return self._built(self.name)

    def build_shadow(self) -> TaskScheduler | None:
        """Make the policy that `shadow` says, with its table; None: there is to be none."""
        return self._built(self.shadow) if self.shadow else None

    def _built(self, name: str) -> TaskScheduler:
        policy = POLICIES.get(name) or self.added[name]
        return policy.from_params(getattr(self, name))

    @classmethod
    def adding(cls, policies: Mapping[str, type[TaskScheduler]]) -> type[PolicySettings]:
        """Make a table that has a field for each of these policies too."""
        fields = [(name, policy.Params, field(default_factory=policy.Params)) for name, policy in policies.items()]
        own = {"added": dict(policies)}
        kind = msgspec.defstruct(
            cls.__name__, fields, bases=(cls,), namespace=own, frozen=True, forbid_unknown_fields=True
        )
        return cast(type[PolicySettings], kind)


#: The keys of [policy] whose values are names of policies, with what they are where they are left out.
NAMING = {each.name: each.default for each in msgspec.structs.fields(PolicySettings) if each.type is str}


class StealingSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Table [stealing]: moving work between backlogs. `work_stealing` steals whatever `enabled` says."""

    enabled: bool = False
    interval_s: Positive = 0.5


class PrefetchSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Table [prefetch]: how far the backlog of a worker may run ahead to hide the round trip."""

    cover_s: NotNegative = 0.03
    runtime_max_s: NotNegative = 1.0
    depth_max: Annotated[int, Meta(ge=0, le=100_000)] = 256


class HeartbeatSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Table [heartbeat]: when a silent worker is unreachable, and when it is lost."""

    interval_s: Positive = 5.0
    lease_s: Positive = 20.0
    lost_after_s: Positive = 40.0


class RetriesSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Table [retries]: how often a task that says nothing else is tried again after each cause, and how."""

    error: Count = 0
    timeout: Count = 0
    oom_host: Count = 2
    oom_gpu: Count = 2
    lost: Count = 3
    rejected: Count = 3
    memory_growth: Annotated[float, Meta(ge=1, le=1000)] = 1.5
    delay_s: Annotated[float, Meta(ge=0, le=1e7)] = 1.0
    delay_max_s: Annotated[float, Meta(ge=0, le=1e7)] = 300.0


class FailureSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Table [failures]: when a worker is quarantined and a kind is held, and when they are tried again."""

    quarantine: bool = True
    quarantine_failures_min: AtLeastOne = 5
    hopeless_kind: bool = True
    hopeless_tasks_min: AtLeastOne = 20
    hopeless_share: Annotated[float, Meta(gt=0.5, le=1)] = 0.95
    probe_after_s: Positive = 60.0
    probe_after_max_s: Positive = 3600.0
    window_s: Positive = 1800.0


class LimitsSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Table [limits]: bounds of the daemon's memory."""

    unfinished_max: AtLeastOne = 5_000_000
    finished_keep_count: AtLeastOne = 10_000
    keyed_keep_count: AtLeastOne = 100_000
    results_keep_mb: NotNegative = 16.0


class JournalSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Table [journal]: what is on disk, and how safe it is before anybody is told."""

    enabled: bool = True
    path: str = ""
    durability: Literal["full", "normal", "off"] = "full"
    adoption_grace_s: NotNegative = 30.0
    keep_days: NotNegative = 30.0
    keep_mb: NotNegative = 4096.0


class MetricsSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Table [metrics]: where Prometheus, and whoever asks how the daemon is, may look."""

    listen: str = ""
    insecure: bool = False


class LogSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Table [log]: what is told, and how."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"
    attempts_per_s: NotNegative = 20.0


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    server: ServerSettings = ServerSettings()
    auth: AuthSettings = AuthSettings()
    tls: TlsSettings = TlsSettings()
    policy: PolicySettings = PolicySettings()
    stealing: StealingSettings = StealingSettings()
    prefetch: PrefetchSettings = PrefetchSettings()
    heartbeat: HeartbeatSettings = HeartbeatSettings()
    retries: RetriesSettings = RetriesSettings()
    failures: FailureSettings = FailureSettings()
    limits: LimitsSettings = LimitsSettings()
    journal: JournalSettings = JournalSettings()
    metrics: MetricsSettings = MetricsSettings()
    log: LogSettings = LogSettings()
    worker: WorkerSettings = WorkerSettings()


def load_settings(path: str | Path | None, *, with_policy: bool = True) -> Settings:
    """Read and check a file; None: all defaults. Raises ConfigError.

    Without `with_policy` the table [policy] is left out: who does not place need not have the policy installed.
    """
    if path is None:
        return Settings()
    try:
        text = Path(path).read_bytes().decode()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", "name an existing file with --config") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    return parse_settings(text, str(path), with_policy=with_policy)


def parse_settings(text: str, source: str = "config.toml", *, with_policy: bool = True) -> Settings:
    """Parse and check the text of a file; `source` is its name in errors. Raises ConfigError."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: {error}") from error
    except RecursionError:
        raise ConfigError(f"{source}: nested too deep") from None
    if not with_policy:
        table.pop("policy", None)
    return settings_of(table, source)


def settings_of(table: dict[str, Any], source: str) -> Settings:
    """Check what a file would say, and fill in the defaults. Raises ConfigError."""
    kind = _kind_for(table, source)
    _refuse_unknown(table, kind, source, ())
    try:
        settings = msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {_say(str(error))}") from error
    _check_relations(settings, source)
    return settings


def _kind_for(table: dict[str, Any], source: str) -> type[Settings]:
    """Settings; with the policies of other distributions that the file chooses or has a table for."""
    policy = table.get("policy")
    if not isinstance(policy, dict):
        return Settings
    given = [(key, value) for key, value in policy.items() if key in NAMING and isinstance(value, str)]
    named = {name: key for key, name in given if name != NAMING[key]}
    tables = [key for key, value in policy.items() if isinstance(value, dict)]
    added: dict[str, type[TaskScheduler]] = {}
    for name in dict.fromkeys([*named, *tables]):
        if name in POLICIES:
            continue
        try:
            found = plugins.find(name) if not hasattr(PolicySettings, name) else None
        except ConfigError as error:
            raise ConfigError(f"{source}: policy: {error.message}", error.hint) from error
        if found is not None:
            added[name] = found
        elif name in named:
            raise _no_policy(named[name], name, source)
    if not added:
        return Settings
    table_kind = PolicySettings.adding(added)
    fields = [("policy", table_kind, field(default_factory=table_kind))]
    kind = msgspec.defstruct("Settings", fields, bases=(Settings,), frozen=True, forbid_unknown_fields=True)
    return cast(type[Settings], kind)


def _refuse_unknown(table: dict[str, Any], kind: type[Struct], source: str, path: tuple[str, ...]) -> None:
    known = {f.name: f.type for f in msgspec.structs.fields(kind)}
    for key, value in table.items():
        if key not in known:
            nearest = difflib.get_close_matches(key, known, 1, 0.5)
            where = f"[{'.'.join(path)}]" if path else "the file"
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"known keys: {', '.join(known) or 'none'}"
            raise ConfigError(f"{source}: {'.'.join((*path, key))} is not a key of {where}", hint)
        inner = known[key]
        if isinstance(value, dict) and isinstance(inner, type) and issubclass(inner, Struct):
            _refuse_unknown(value, inner, source, (*path, key))


def _say(error: str) -> str:
    """Turn "Expected `int`, got `str` - at `$.a.b`" into "a.b: expected int, got str"."""
    message, _, path = error.partition(" - at `$.")
    message = message.replace("`", "")
    return f"{path.rstrip('`')}: {message[:1].lower()}{message[1:]}" if path else message


def _check_relations(settings: Settings, source: str) -> None:
    _check_policy(settings.policy, source)
    beat = settings.heartbeat
    if beat.lease_s < 3 * beat.interval_s:
        raise ConfigError(
            f"{source}: heartbeat.lease_s = {beat.lease_s:g} is less than three times interval_s = {beat.interval_s:g}",
            "one lost heartbeat must not make a worker unreachable",
        )
    if settings.retries.delay_max_s < settings.retries.delay_s:
        raise ConfigError(f"{source}: retries.delay_max_s is less than retries.delay_s")
    if settings.failures.probe_after_max_s < settings.failures.probe_after_s:
        raise ConfigError(f"{source}: failures.probe_after_max_s is less than failures.probe_after_s")
    addresses = {
        "server.listen": settings.server.listen,
        "worker.connect": settings.worker.connect,
        "metrics.listen": settings.metrics.listen,
    }
    for key, text in addresses.items():
        if not text:
            continue
        try:
            address = parse_address(text)
        except ConfigError as error:
            raise ConfigError(f"{source}: {key}: {error.message}", error.hint) from error
        if key == "server.listen":
            try:
                check_exposure(settings, address)
            except ConfigError as error:
                raise ConfigError(f"{source}: {error.message}", error.hint) from error
        if key == "metrics.listen" and not address.is_loopback and not settings.metrics.insecure:
            raise ConfigError(
                f"{source}: metrics.listen = {text!r} is open to other machines, to whom it tells what runs here",
                "listen on 127.0.0.1, or set metrics.insecure = true if everybody there may know",
            )
    if bool(settings.tls.key) > settings.tls.is_on or bool(settings.tls.client_ca) > settings.tls.is_on:
        raise ConfigError(f"{source}: tls.key and tls.client_ca mean nothing without tls.cert")
    if settings.worker.reconnect_delay_max_s < settings.worker.reconnect_delay_s:
        raise ConfigError(f"{source}: worker.reconnect_delay_max_s is less than worker.reconnect_delay_s")


def check_exposure(settings: Settings, address: Address) -> None:
    """Refuse to listen for other machines without TLS and tokens, unless that is wanted. Raises ConfigError.

    Tokens are asked for off loopback by themselves: see `asks_token`.
    """
    if not address.is_loopback and not settings.tls.is_on and not settings.server.insecure:
        raise ConfigError(
            f"server.listen = {str(address)!r} is open to other machines, and there is no TLS",
            "listen on 127.0.0.1, make certificates with `schedd tls init` and set [tls] cert and key, or set "
            "server.insecure = true if everybody who can reach the port may do everything; see docs/security.md",
        )


def asks_token(settings: Settings, address: Address) -> bool:
    """Whether who comes over TCP at this address has to prove a token."""
    return settings.auth.required or not (address.is_loopback or settings.server.insecure)


def _check_policy(policy: PolicySettings, source: str) -> None:
    for key in NAMING:
        name = getattr(policy, key)
        if name in policy.added:
            try:
                policy._built(name)
            except Exception as error:  # whatever another distribution may raise
                raise ConfigError(f"{source}: policy.{name}: {error or type(error).__name__}") from error


def _no_policy(key: str, name: str, source: str) -> ConfigError:
    known = [*POLICIES, *plugins.registered()]
    nearest = difflib.get_close_matches(name, known, 1, 0.4)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"policies: {', '.join(known)}"
    return ConfigError(f"{source}: policy.{key}: there is no policy {name!r}", hint)
