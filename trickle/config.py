"""Settings: one frozen Struct, and where each value of it came from.

A setting is looked for in this order, and the first place that has it wins:

1. the arguments of ``App(…)`` (and what the command line overrides);
2. the environment, as ``TRICKLE_`` and the name in capitals: ``TRICKLE_COMMIT_INTERVAL=0.5``;
3. ``[tool.trickle]`` in the nearest pyproject.toml above the app's module;
4. the default.

A name that no setting has is an error in each of the three places, as it is mostly a slip of the
pen that would otherwise do nothing, in silence. Durations are seconds, or a timedelta as an
argument. Relative paths start from the directory of that pyproject.toml, else of the module, else
(without a file) from the current directory, wherever the setting itself was written.
"""

from __future__ import annotations

import ipaddress
import os
import tomllib
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, NoReturn, TypedDict, cast

import msgspec

from trickle.exceptions import ConfigurationError
from trickle.types import Guarantee
from trickle.utils import values
from trickle.utils.names import check_name
from trickle.utils.redact import HIDDEN, client_secrets, redact_client, redact_url, url_secrets
from trickle.utils.suggest import did_you_mean

__all__ = [
    "APP_ID_CHARS_MAX",
    "Resolved",
    "SettingArguments",
    "Settings",
    "check_arguments",
    "resolve",
    "secret_values",
    "shown",
]

APP_ID_CHARS_MAX = 200
"""Kafka allows 249; ``{app}-{table}-changelog`` and the like must fit too."""

ClientOptions = Mapping[str, str | int | float | bool]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The effective settings of an app; durations are seconds, sizes bytes.

    Attributes:
        id: names the consumer group, and begins the names of topics and directories.
        broker: its URL; a path in it is absolute.
        data_dir: the embedded log and the tables; absolute.
        store: where tables live: ``lmdb://`` (in ``data_dir``), or ``memory://``.
        processing_guarantee: ``exactly_once``, or ``at_least_once``.
        commit_interval: a commit follows the end of the last one after this long at most.
        commit_interval_min: when there is nothing else to do, commits follow this quickly, if they
            are quick themselves.
        commit_max_events: a commit holds so many events at most.
        commit_max_bytes: and so much of what they sent and wrote.
        drain_timeout: how long events in hand may go on when the worker stops, or partitions go;
            and how long the last commit waits for a broker that is away.
        session_timeout: the group gives up a silent worker after this; under KIP-848 the brokers'
            ``group.consumer.session.timeout.ms`` says so instead.
        broker_timeout: how long any request may wait for the broker.
        transaction_timeout: the broker aborts a transaction that is older.
        recovery_timeout: how long a recovery may make no progress.
        web: serve web pages; None leaves it to the way of running: on in ``trickle worker``.
        web_host: the address to serve them on.
        web_port: None takes 6066, or the next one that is free.
        web_token: bearer token that requests must carry; required beyond loopback.
        partitions: of topics that are declared without a number; None: the broker's default.
        replicas: likewise.
        declare_topics: create topics that are missing.
        first_position: where a group that never committed starts: ``earliest`` or ``latest``.
        out_of_range: what to do where a committed offset is gone: ``stop``, ``earliest``,
            ``latest``.
        client: options of the Kafka client (librdkafka) by its own names.
        buffer_bytes: fetched records that wait for their agents, at most.
        cache_bytes: values of tables in memory, of all shards together, at most.
        group_protocol: ``classic``, or ``consumer`` (KIP-848).
        group_instance_id: a static member's name; None: no static membership.
        standby_replicas: how many other workers keep a copy of each shard up to date.
    """

    id: str
    broker: str
    data_dir: Path
    store: str = "lmdb://"
    processing_guarantee: Guarantee = "exactly_once"
    commit_interval: float = 0.1
    commit_interval_min: float = 0.01
    commit_max_events: int = 100_000
    commit_max_bytes: int = 16 << 20
    drain_timeout: float = 5.0
    session_timeout: float = 10.0
    broker_timeout: float = 20.0
    transaction_timeout: float = 10.0
    recovery_timeout: float = 60.0
    web: bool | None = None
    web_host: str = "127.0.0.1"
    web_port: int | None = None
    web_token: str | None = None
    partitions: int | None = None
    replicas: int | None = None
    declare_topics: bool = True
    first_position: Literal["earliest", "latest"] = "earliest"
    out_of_range: Literal["stop", "earliest", "latest"] = "stop"
    client: ClientOptions = MappingProxyType({})
    buffer_bytes: int = 32 << 20
    cache_bytes: int = 256 << 20
    group_protocol: Literal["classic", "consumer"] = "classic"
    group_instance_id: str | None = None
    standby_replicas: int = 0

    def __repr__(self) -> str:
        """Show them with secrets hidden: a traceback or a log line may hold this."""
        fields = ", ".join(f"{name}={text}" for name, text, _ in shown(self, {}))
        return f"Settings(id={self.id!r}, {fields})"


class SettingArguments(TypedDict, total=False):
    """What ``App(…)`` takes as keywords: every setting but the id."""

    broker: str | None
    data_dir: str | os.PathLike[str] | None
    store: str
    processing_guarantee: Guarantee
    commit_interval: float | timedelta
    commit_interval_min: float | timedelta
    commit_max_events: int
    commit_max_bytes: int
    drain_timeout: float | timedelta
    session_timeout: float | timedelta
    broker_timeout: float | timedelta
    transaction_timeout: float | timedelta
    recovery_timeout: float | timedelta
    web: bool | None
    web_host: str
    web_port: int | None
    web_token: str | None
    partitions: int | None
    replicas: int | None
    declare_topics: bool
    first_position: Literal["earliest", "latest"]
    out_of_range: Literal["stop", "earliest", "latest"]
    client: Mapping[str, str | int | float | bool]
    buffer_bytes: int
    cache_bytes: int
    group_protocol: Literal["classic", "consumer"]
    group_instance_id: str | None
    standby_replicas: int


class Resolved(NamedTuple):
    """The effective settings.

    Attributes:
        sources: where each came from: ``default``, ``argument``, ``TRICKLE_X``,
            ``pyproject.toml``.
    """

    settings: Settings
    sources: Mapping[str, str]


_DAY = 86_400
_KINDS: dict[str, values.Kind] = {
    "broker": values.text(),
    "data_dir": values.path(),
    "store": values.choice("lmdb://", "memory://"),
    "processing_guarantee": values.choice("exactly_once", "at_least_once"),
    "commit_interval": values.duration(0.001, 3600),
    "commit_interval_min": values.duration(0, 3600),
    "commit_max_events": values.integer(1),
    "commit_max_bytes": values.integer(1),
    "drain_timeout": values.duration(0, _DAY),
    "session_timeout": values.duration(0.1, 3600),  # librdkafka's upper bound
    "broker_timeout": values.duration(0.1, _DAY),
    "transaction_timeout": values.duration(1, _DAY),
    "recovery_timeout": values.duration(0.1, _DAY),
    "web": values.boolean(),
    "web_host": values.text(),
    "web_port": values.integer(0, 0xFFFF),
    "web_token": values.text(),
    "partitions": values.integer(1),
    "replicas": values.integer(1, 0x7FFF),
    "declare_topics": values.boolean(),
    "first_position": values.choice("earliest", "latest"),
    "out_of_range": values.choice("stop", "earliest", "latest"),
    "client": values.mapping(),
    "buffer_bytes": values.integer(1 << 10),
    "cache_bytes": values.integer(1 << 10),
    "group_protocol": values.choice("classic", "consumer"),
    "group_instance_id": values.text(),
    "standby_replicas": values.integer(0, 10),
}
_MAY_BE_NONE = frozenset(
    {
        "broker", "data_dir", "web", "web_port", "web_token", "partitions", "replicas",
        "group_instance_id",
    }
)  # fmt: skip
_SECRET = frozenset({"client", "web_token"})
_WHEN_NONE = {
    "web": "on in trickle worker",
    "web_port": "6066, or the next free one",
    "web_token": "none",
    "partitions": "the broker's",
    "replicas": "the broker's",
    "group_instance_id": "none",
}
_PREFIX = "TRICKLE_"
_OTHER_VARIABLES = frozenset({"TRICKLE_APP"})  # the command line's
_SCHEMES = ("kafka", "lmdb", "memory")


def check_arguments(app_id: object, arguments: Mapping[str, Any]) -> None:
    """Check what stands in ``App(…)`` alone, without a look at environment and files.

    Raises:
        ConfigurationError: the id, or an argument's name or value, is wrong.
    """
    check_name(app_id, what="the app's id", chars_max=APP_ID_CHARS_MAX)
    _from_arguments(arguments)


def resolve(
    app_id: str,
    arguments: Mapping[str, Any],
    module_file: str | None,
    environ: Mapping[str, str] = os.environ,
) -> Resolved:
    """Return the effective settings of an app.

    Args:
        app_id: its id.
        arguments: what ``App(…)`` was given; None stands for "left out" where it has no meaning.
        module_file: the file of the app's module; None starts from the current directory.
        environ: the environment variables.

    Raises:
        ConfigurationError: a name or a value is wrong; the sentence names the setting and where
            it stood.
    """
    check_name(app_id, what="the app's id", chars_max=APP_ID_CHARS_MAX)
    beside = Path(module_file).absolute().parent if module_file is not None else Path.cwd()
    project = _find_project(beside)
    base = beside if project is None else project.parent
    found: dict[str, Any] = {}
    sources: dict[str, str] = dict.fromkeys(_KINDS, "default")
    places = (
        _from_project(project),
        _from_environment(environ),
        _from_arguments(arguments),
    )
    for place in places:
        for name, (value, source) in place.items():
            found[name], sources[name] = value, source
    data_dir = base / _at_home(found.pop("data_dir", ".trickle"), "data_dir", sources)
    found["data_dir"] = data_dir = Path(os.path.normpath(data_dir))
    if "broker" in found:
        found["broker"] = _broker(found["broker"], base, sources)
    else:
        found["broker"] = f"lmdb://{data_dir / 'log'}"
    if "client" in found:
        found["client"] = MappingProxyType(found["client"])
    if "commit_interval_min" not in found and "commit_interval" in found:
        found["commit_interval_min"] = min(0.01, found["commit_interval"])
    settings = Settings(id=app_id, **found)
    _check_together(settings, sources)
    return Resolved(settings, MappingProxyType(sources))


# The places


def _from_arguments(arguments: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    found: dict[str, tuple[Any, str]] = {}
    for name, value in arguments.items():
        kind = _KINDS.get(name)
        if kind is None:
            raise ConfigurationError(
                f"there is no setting {name!r}{did_you_mean(name, _KINDS)}: App(…) takes "
                f"{', '.join(sorted(_KINDS))}"
            )
        if value is None and name in _MAY_BE_NONE:
            continue
        try:
            found[name] = kind.of_value(value), "argument"
        except ValueError as error:
            _refuse(name, "argument", str(error), value)
        if name == "broker":
            _check_scheme(found[name][0], "argument")
    return found


def _from_environment(environ: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    found: dict[str, tuple[Any, str]] = {}
    variables = {f"{_PREFIX}{name.upper()}": name for name in _KINDS}
    for variable in sorted(environ):
        if not variable.startswith(_PREFIX) or variable in _OTHER_VARIABLES:
            continue
        name = variables.get(variable)
        if name is None:
            known = [*variables, *_OTHER_VARIABLES]
            raise ConfigurationError(
                f"the environment variable {variable} names no setting"
                f"{did_you_mean(variable, known)}: unset it, or use one of "
                f"{', '.join(sorted(known))}"
            )
        try:
            found[name] = _KINDS[name].of_text(environ[variable]), variable
        except ValueError as error:
            _refuse(name, variable, str(error), environ[variable])
    return found


def _from_project(project: Path | None) -> dict[str, tuple[Any, str]]:
    if project is None:
        return {}
    try:
        document = tomllib.loads(project.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{project} cannot be read for settings: {error}") from error
    section: object = document
    for key in ("tool", "trickle"):
        section = cast("dict[str, object]", section).get(key, {})
        if not isinstance(section, dict):
            raise ConfigurationError(f"{project}: [tool.trickle] must be a table of settings")
    found: dict[str, tuple[Any, str]] = {}
    for name, value in cast("dict[str, object]", section).items():
        kind = _KINDS.get(name)
        if kind is None:
            raise ConfigurationError(
                f"{project}: [tool.trickle] has {name!r}, which is no setting"
                f"{did_you_mean(name, _KINDS)}: use one of {', '.join(sorted(_KINDS))}"
            )
        try:
            found[name] = kind.of_value(value), "pyproject.toml"
        except ValueError as error:
            _refuse(name, f"[tool.trickle] of {project}", str(error), value)
    return found


def _find_project(beside: Path) -> Path | None:
    for directory in (beside, *beside.parents):
        candidate = directory / "pyproject.toml"
        if os.path.isfile(candidate):  # Path.is_file raises where a parent is closed to us
            return candidate
    return None


def _refuse(name: str, source: str, expected: str, value: object) -> NoReturn:
    if name in _SECRET:
        got = f"a {type(value).__name__} (not shown, as it may be secret)"
    elif name == "broker" and isinstance(value, str):
        got = repr(redact_url(value))
    else:
        text = repr(value)
        got = text if len(text) <= 80 else text[:79] + "…"
    raise ConfigurationError(f"{name} ({source}) must be {expected}, not {got}")


# What several settings, or a path, decide


def _check_scheme(url: str, source: str) -> tuple[str, str]:
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise ConfigurationError(
            f"broker ({source}) is {redact_url(url)!r}, which is no broker URL that trickle knows: "
            "use kafka://host:port, lmdb://path or memory://name"
        )
    if scheme == "kafka" and not rest.rpartition("@")[2].strip(",/ "):
        raise ConfigurationError(
            f"broker ({source}) is {redact_url(url)!r}, which names no host: write "
            "kafka://host:port, or several addresses with commas between them"
        )
    if scheme == "lmdb" and not rest.strip("/"):
        raise ConfigurationError(
            f"broker ({source}) is {url!r}, which names no directory: write lmdb://path, or leave "
            "broker out to have the embedded log in data_dir"
        )
    return scheme, rest


def _broker(url: str, base: Path, sources: Mapping[str, str]) -> str:
    scheme, rest = _check_scheme(url, sources["broker"])
    if scheme != "lmdb":
        return url
    return f"lmdb://{os.path.normpath(base / _at_home(rest, 'broker', sources))}"


def _at_home(path: str, name: str, sources: Mapping[str, str]) -> Path:
    """Return a path with ``~`` and ``~user`` replaced by a home directory."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigurationError(
            f"{name} ({sources[name]}) is {path!r}, but {path.partition('/')[0]!r} has no home "
            "directory here: write the path in full"
        ) from None


def _check_together(settings: Settings, sources: Mapping[str, str]) -> None:
    if not _is_loopback(settings.web_host) and settings.web_token is None:
        raise ConfigurationError(
            f"web_host ({sources['web_host']}) is {settings.web_host!r}, which others can reach: "
            "set web_token to a secret that their requests must carry, or leave web_host at "
            "127.0.0.1"
        )
    if settings.commit_interval_min > settings.commit_interval:
        raise ConfigurationError(
            f"commit_interval_min ({sources['commit_interval_min']}) is "
            f"{settings.commit_interval_min:g} s, more than commit_interval "
            f"({sources['commit_interval']}), {settings.commit_interval:g} s: lower the one or "
            "raise the other"
        )
    if settings.commit_interval >= settings.transaction_timeout:
        raise ConfigurationError(
            f"commit_interval ({sources['commit_interval']}) is {settings.commit_interval:g} s, "
            f"and the broker aborts transactions after transaction_timeout "
            f"({sources['transaction_timeout']}), {settings.transaction_timeout:g} s: lower the "
            "one or raise the other"
        )


def without_effect(settings: Settings, sources: Mapping[str, str]) -> list[str]:
    """Return a sentence for each setting that was given, and that others leave without effect."""
    if settings.group_protocol == "classic" or not settings.broker.startswith("kafka://"):
        return []
    if (source := sources.get("session_timeout", "default")) == "default":
        return []
    sentence = (
        f"session_timeout ({source}) has no effect under group_protocol='consumer': brokers say by "
        "group.consumer.session.timeout.ms (45 s by default) when a silent worker is given up"
    )
    return [sentence]


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


# For people


def shown(settings: Settings, sources: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Return name, text and source of each setting, with secrets hidden.

    The id is left out: a banner has it in its title.
    """
    return [
        (name, _text(name, getattr(settings, name)), sources.get(name, "default"))
        for name in _KINDS
    ]


def _text(name: str, value: object) -> str:
    if value is None:
        return _WHEN_NONE[name]
    if name == "broker":
        return redact_url(str(value))
    if name == "client":
        options = redact_client(cast("Mapping[str, object]", value))
        return ", ".join(f"{key}={item}" for key, item in options.items()) or "none"
    if name in _SECRET:
        return HIDDEN
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def secret_values(settings: Settings) -> list[str]:
    """Return the texts that may not be seen in any log line, error or page."""
    token = [settings.web_token] if settings.web_token else []
    return [*token, *client_secrets(settings.client), *url_secrets(settings.broker)]
