"""Settings: where each comes from, what is refused and in which words, what is hidden."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import pytest

from trickle.config import (
    Resolved,
    SettingArguments,
    Settings,
    check_arguments,
    resolve,
    secret_values,
    shown,
    without_effect,
)
from trickle.exceptions import ConfigurationError

SECRET = "hunter2-canary"
UNSEEN = "(not shown, as it may be secret)"
TEXT = "text that is not empty, without control characters"
MAPPING = "a mapping of names to text, numbers, true or false"
UNKNOWN_URL = "which is no broker URL that trickle knows: use kafka://host:port, lmdb://path or "
NO_HOST = "which names no host: write kafka://host:port, or several addresses with commas between"
NO_DIRECTORY = "which names no directory: write lmdb://path, or leave broker out to have the "


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a pyproject.toml at its top and the app's module two levels below."""
    (tmp_path / "src" / "package").mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    return tmp_path


def write(project: Path, section: str) -> None:
    (project / "pyproject.toml").write_text(f"[tool.trickle]\n{section}\n")


def load(project: Path, environ: Mapping[str, str] | None = None, **arguments: Any) -> Resolved:
    module = project / "src" / "package" / "app.py"
    return resolve("flights", arguments, str(module), environ or {})


def refusal(project: Path, environ: Mapping[str, str] | None = None, **arguments: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(project, environ, **arguments)
    return str(caught.value)


# What others leave without effect


def test_a_session_timeout_that_is_the_brokers_to_say_is_told(project: Path) -> None:
    def sentences(**arguments: Any) -> list[str]:
        return without_effect(*load(project, broker="kafka://h:1", **arguments))

    assert sentences(group_protocol="consumer") == sentences(session_timeout=6) == []
    (sentence,) = sentences(group_protocol="consumer", session_timeout=6)
    assert sentence.startswith("session_timeout (argument) has no effect under group_protocol=")
    assert "group.consumer.session.timeout.ms" in sentence
    assert not without_effect(*load(project, group_protocol="consumer", session_timeout=6))


# The order of the places


def test_defaults(project: Path) -> None:
    settings, sources = load(project)
    assert settings == Settings(
        id="flights", broker=f"lmdb://{project}/.trickle/log", data_dir=project / ".trickle"
    )
    assert set(sources.values()) == {"default"}
    assert settings.processing_guarantee == "exactly_once"
    assert (settings.commit_interval, settings.commit_interval_min) == (0.1, 0.01)
    assert (settings.drain_timeout, settings.session_timeout, settings.broker_timeout) == (
        5,
        10,
        20,
    )


def test_arguments_win_over_the_environment_and_that_over_the_project(project: Path) -> None:
    write(project, "commit_interval = 1\ndrain_timeout = 1\npartitions = 3")
    environ = {"TRICKLE_COMMIT_INTERVAL": "2", "TRICKLE_DRAIN_TIMEOUT": "2"}
    settings, sources = load(project, environ, commit_interval=3)
    assert (settings.commit_interval, settings.drain_timeout, settings.partitions) == (3, 2, 3)
    assert sources["commit_interval"] == "argument"
    assert sources["drain_timeout"] == "TRICKLE_DRAIN_TIMEOUT"
    assert sources["partitions"] == "pyproject.toml"
    assert sources["web"] == "default"


def test_an_argument_of_none_leaves_a_setting_to_the_other_places(project: Path) -> None:
    settings, _ = load(project, {"TRICKLE_WEB": "off"}, web=None, broker=None)
    assert settings.web is False
    assert settings.broker == f"lmdb://{project}/.trickle/log"
    assert refusal(project, commit_interval=None) == (
        "commit_interval (argument) must be seconds (a number or a timedelta), from 0.001 to "
        "3,600, not None"
    )


def test_each_setting_is_an_argument_a_variable_and_a_key() -> None:
    assert set(get_type_hints(SettingArguments)) == set(Settings.__struct_fields__) - {"id"}
    settings = Settings(id="a", broker="memory://", data_dir=Path("/x"))
    assert [name for name, _, _ in shown(settings, {})] == [
        name for name in Settings.__struct_fields__ if name != "id"
    ]


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("broker", "memory://x", "memory://x"),
        ("store", "memory://", "memory://"),
        ("processing_guarantee", "at_least_once", "at_least_once"),
        ("commit_interval", "0.5", 0.5),
        ("commit_max_events", "10", 10),
        ("web", "Yes", True),
        ("web", "0", False),
        ("web_port", "0", 0),
        ("declare_topics", "false", False),
        ("out_of_range", "earliest", "earliest"),
        ("client", '{"linger.ms": 5, "check.crcs": true}', {"linger.ms": 5, "check.crcs": True}),
        ("client", '{"ssl": {"ca": {"location": "x"}}}', {"ssl.ca.location": "x"}),
        ("group_instance_id", " a ", "a"),
        ("standby_replicas", "2", 2),
    ],
)
def test_variables_are_read_by_what_their_setting_holds(
    project: Path, name: str, text: str, value: object
) -> None:
    settings, sources = load(project, {f"TRICKLE_{name.upper()}": text})
    assert getattr(settings, name) == value
    assert sources[name] == f"TRICKLE_{name.upper()}"


def test_durations_may_be_timedeltas(project: Path) -> None:
    assert load(project, drain_timeout=timedelta(minutes=1))[0].drain_timeout == 60.0


def test_other_variables_are_nobodys_business(project: Path) -> None:
    load(project, {"TRICKLE_APP": "app:app", "PATH": "/bin", "XTRICKLE_Y": "1"})


def test_dotted_keys_of_the_client_need_no_quotes_in_toml(project: Path) -> None:
    write(project, 'client.security.protocol = "SSL"\nclient."linger.ms" = 5')
    assert load(project)[0].client == {"security.protocol": "SSL", "linger.ms": 5}


# Paths


def test_the_nearest_project_counts(project: Path) -> None:
    write(project, "partitions = 3")
    (project / "src" / "pyproject.toml").write_text("")
    settings, _ = load(project)
    assert settings.partitions is None
    assert settings.data_dir == project / "src" / ".trickle"


def test_without_a_project_paths_start_beside_the_module(tmp_path: Path) -> None:
    # Nothing above a temporary directory is expected to be a project; the test says so if it is.
    assert not any((parent / "pyproject.toml").exists() for parent in tmp_path.parents)
    settings, _ = resolve("a", {}, str(tmp_path / "app.py"), {})
    assert settings.data_dir == tmp_path / ".trickle"


def test_without_a_file_they_start_in_the_current_directory(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project / "src")
    write(project, "partitions = 3")
    settings, _ = resolve("a", {}, None, {})
    assert (settings.partitions, settings.data_dir) == (3, project / ".trickle")


@pytest.mark.parametrize(
    ("broker", "expected"),
    [
        ("lmdb://log", "lmdb://{project}/log"),
        ("lmdb://../log", "lmdb://{parent}/log"),
        ("lmdb:///var/log", "lmdb:///var/log"),
        ("kafka://a:1,b:2", "kafka://a:1,b:2"),
        ("memory://", "memory://"),
    ],
)
def test_a_brokers_path_is_relative_as_the_data_directory_is(
    project: Path, broker: str, expected: str
) -> None:
    settings, _ = load(project, broker=broker)
    assert settings.broker == expected.format(project=project, parent=project.parent)


def test_the_log_is_in_the_data_directory_wherever_that_is(project: Path) -> None:
    settings, _ = load(project, data_dir=Path("data"))
    assert settings.data_dir == project / "data"
    assert settings.broker == f"lmdb://{project}/data/log"
    settings, _ = load(project, data_dir="~/x")
    assert settings.data_dir == Path(os.path.expanduser("~/x"))


# Wrong names and values


def test_an_unknown_name_is_told_where_it_stands(project: Path) -> None:
    assert refusal(project, comit_interval=1).startswith(
        "there is no setting 'comit_interval' (did you mean 'commit_interval'?): App(…) takes "
    )
    assert refusal(project, {"TRICKLE_BROKR": "x"}).startswith(
        "the environment variable TRICKLE_BROKR names no setting (did you mean 'TRICKLE_BROKER'?)"
    )
    write(project, "brokr = 1")
    assert refusal(project).startswith(
        f"{project}/pyproject.toml: [tool.trickle] has 'brokr', which is no setting (did you mean "
        "'broker'?): use one of broker, "
    )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("web_port", "80", "must be a whole number from 0 to 65,535, not '80'"),
        ("web_port", 65536, "must be a whole number from 0 to 65,535, not 65536"),
        ("standby_replicas", "11", "must be a whole number from 0 to 10, not '11'"),
        ("standby_replicas", -1, "must be a whole number from 0 to 10, not -1"),
        ("partitions", 0, "must be a whole number, 1 or more, not 0"),
        ("partitions", True, "must be a whole number, 1 or more, not True"),
        ("web", 1, "must be true or false, not 1"),
        ("store", "redis://", "must be 'lmdb://' or 'memory://', not 'redis://'"),
        ("out_of_range", [], "must be 'stop' or 'earliest' or 'latest', not []"),
        (
            "drain_timeout",
            float("nan"),
            "must be seconds (a number or a timedelta), from 0 to 86,400, not nan",
        ),
        ("data_dir", 5, "must be a path, not 5"),
        ("data_dir", "", "must be a path, not ''"),
        ("broker", 5, f"must be {TEXT}, not 5"),
        ("client", {"a": [1]}, f"must be {MAPPING}, not a dict {UNSEEN}"),
        ("web_token", 5, f"must be {TEXT}, not a int {UNSEEN}"),
    ],
)
def test_a_wrong_value_names_setting_source_and_expectation(
    project: Path, name: str, value: object, message: str
) -> None:
    arguments: dict[str, Any] = {name: value}
    assert refusal(project, None, **arguments) == f"{name} (argument) {message}"


def test_a_wrong_value_of_a_variable_and_of_a_key(project: Path) -> None:
    assert refusal(project, {"TRICKLE_WEB_PORT": "x"}) == (
        "web_port (TRICKLE_WEB_PORT) must be a whole number from 0 to 65,535, not 'x'"
    )
    assert refusal(project, {"TRICKLE_CLIENT": f"[{SECRET}"}) == (
        'client (TRICKLE_CLIENT) must be a JSON object, as in {"security.protocol": "SSL"}, not a '
        "str (not shown, as it may be secret)"
    )
    write(project, "web = 'on'")
    assert refusal(project) == (
        f"web ([tool.trickle] of {project}/pyproject.toml) must be true or false, not 'on'"
    )


@pytest.mark.parametrize(
    ("broker", "message"),
    [
        ("localhost:9092", f"is 'localhost:9092', {UNKNOWN_URL}memory://name"),
        (f"redis://u:{SECRET}@host", f"is 'redis://****@host', {UNKNOWN_URL}memory://name"),
        (f"kafka://u:{SECRET}@", f"is 'kafka://****@', {NO_HOST} them"),
        ("lmdb://", f"is 'lmdb://', {NO_DIRECTORY}embedded log in data_dir"),
    ],
)
def test_broker_urls_that_lead_nowhere(project: Path, broker: str, message: str) -> None:
    assert refusal(project, broker=broker) == f"broker (argument) {message}"
    assert refusal(project, {"TRICKLE_BROKER": broker}) == f"broker (TRICKLE_BROKER) {message}"


def test_a_home_that_nobody_has(project: Path) -> None:
    words = "but '~nobody-of-this-name' has no home directory here: write the path in full"
    path = "~nobody-of-this-name/x"
    assert refusal(project, data_dir=path) == f"data_dir (argument) is '{path}', {words}"
    told = refusal(project, {"TRICKLE_BROKER": f"lmdb://{path}"})
    assert told == f"broker (TRICKLE_BROKER) is '{path}', {words}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[tool.trickle\n", "cannot be read for settings: "),
        ("tool = 5", "[tool.trickle] must be a table of settings"),
        ("[tool]\ntrickle = 5", "[tool.trickle] must be a table of settings"),
    ],
)
def test_a_project_file_that_makes_no_sense(project: Path, content: str, message: str) -> None:
    (project / "pyproject.toml").write_text(content)
    assert refusal(project).startswith(f"{project}/pyproject.toml")
    assert message in refusal(project)


@pytest.mark.parametrize("app_id", ["", "a/b", "..", "x" * 201, 5])
def test_an_app_id_is_a_kafka_name(app_id: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^the app's id "):
        resolve(app_id, {}, None, {})
    with pytest.raises(ConfigurationError, match=r"^the app's id "):
        check_arguments(app_id, {})


# Settings that go together


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "example.org", "192.168.1.1"])  # noqa: S104 - refused
def test_a_server_that_others_reach_needs_a_token(project: Path, host: str) -> None:
    assert refusal(project, web_host=host) == (
        f"web_host (argument) is {host!r}, which others can reach: set web_token to a secret that "
        "their requests must carry, or leave web_host at 127.0.0.1"
    )
    assert load(project, web_host=host, web_token=SECRET)[0].web_host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "localhost"])
def test_loopback_needs_none(project: Path, host: str) -> None:
    assert load(project, web_host=host)[0].web_token is None


def test_intervals_fit_each_other(project: Path) -> None:
    assert load(project, commit_interval=0.005)[0].commit_interval_min == 0.005
    assert refusal(project, commit_interval=0.1, commit_interval_min=0.2) == (
        "commit_interval_min (argument) is 0.2 s, more than commit_interval (argument), 0.1 s: "
        "lower the one or raise the other"
    )
    assert refusal(project, commit_interval=10) == (
        "commit_interval (argument) is 10 s, and the broker aborts transactions after "
        "transaction_timeout (default), 10 s: lower the one or raise the other"
    )


# Secrets


def secretive(project: Path) -> Resolved:
    return load(
        project,
        broker=f"kafka://user:{SECRET}1@host:9092",
        client={"sasl.password": f"{SECRET}2", "linger.ms": 5},
        web_token=f"{SECRET}3",
    )


def test_secrets_are_hidden_wherever_settings_are_shown(project: Path) -> None:
    settings, sources = secretive(project)
    rows = {name: (text, source) for name, text, source in shown(settings, sources)}
    assert rows["broker"] == ("kafka://****@host:9092", "argument")
    assert rows["client"] == ("sasl.password=****, linger.ms=5", "argument")
    assert rows["web_token"] == ("****", "argument")
    assert rows["web_port"] == ("6066, or the next free one", "default")
    assert rows["commit_interval"] == ("0.1", "default")
    assert rows["declare_topics"] == ("true", "default")
    assert SECRET not in repr(settings)
    assert SECRET not in repr(Resolved(settings, sources))
    assert SECRET not in str(settings)


def test_secrets_are_known_to_log_filters(project: Path) -> None:
    assert secret_values(secretive(project).settings) == [
        f"{SECRET}3", f"{SECRET}2", f"{SECRET}1",
    ]  # fmt: skip
    assert secret_values(load(project).settings) == []


def test_settings_are_frozen(project: Path) -> None:
    settings, sources = secretive(project)
    with pytest.raises(AttributeError):
        settings.web = True  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    for mapping in (settings.client, sources):
        with pytest.raises(TypeError):
            mapping["x"] = "y"  # type: ignore[index]  # pyright: ignore[reportIndexIssue]
    changed = msgspec.structs.replace(settings, web=True)
    assert changed.web is True


def test_arguments_alone_are_checked_without_a_look_around(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(project, "nonsense = 1")
    monkeypatch.chdir(project)
    check_arguments("a", {"broker": "memory://", "web": None, "commit_interval": 5})
    with pytest.raises(ConfigurationError, match="there is no setting 'brokr'"):
        check_arguments("a", {"brokr": "memory://"})
