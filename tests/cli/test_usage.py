"""Arguments and app paths that are wrong: one sentence, exit code 2, and nothing created."""

from __future__ import annotations

import pytest

from tests.cli.program import Project

WRONG_PATHS = {
    "app": "the attribute is missing: write app:app for the variable app in it",
    "app.py": "it names a module, not a file: write app:app",
    "app.py:app": "it names a module, not a file: write app:app",
    "./src/app.py": "it names a module, not a file: write src.app:app",
    "": "write MODULE:ATTRIBUTE, like app:app for the variable app in app.py",
    "app:": "write MODULE:ATTRIBUTE, like app:app for the variable app in app.py",
    "a b:c": "write MODULE:ATTRIBUTE, like app:app for the variable app in app.py",
    "app:app()": "write MODULE:ATTRIBUTE, like app:app for the variable app in app.py",
}


def told(project: Project, *args: str, code: int = 2) -> str:
    """Run a command that must fail so, by one sentence alone, and return that."""
    before = project.files()
    done = project.run(*args)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert project.files() == before
    return done.stderr.strip()


@pytest.mark.parametrize("path", sorted(WRONG_PATHS))
def test_an_app_path_that_is_not_written_so(project: Project, path: str) -> None:
    assert told(project, "worker", path) == (
        f"trickle: the app path {path!r} cannot be read: {WRONG_PATHS[path]}"
    )


def test_a_module_that_is_not_there(project: Project) -> None:
    assert told(project, "worker", "shop:app") == (
        "trickle: the app path 'shop:app' names the module 'shop', but there is no module 'shop' "
        f"in {project.path} or on sys.path: write MODULE:ATTRIBUTE, like app:app for the variable "
        "app in app.py, and start trickle in the directory that holds the module"
    )


def test_a_module_that_imports_what_is_not_installed(project: Project) -> None:
    project.write("broken.py", "import os\nimport no_such_library\n")
    assert told(project, "worker", "broken:app") == (
        "trickle: the module 'broken' of the app path 'broken:app' fails at broken.py:2: it "
        "imports 'no_such_library', which is not installed here"
    )


def test_a_module_that_raises(project: Project) -> None:
    project.write("broken.py", "def make():\n    return 1 / 0\n\napp = make()\n")
    sentence = "trickle: the module 'broken' of the app path 'broken:app' fails at broken.py:2: "
    assert told(project, "worker", "broken:app") == f"{sentence}ZeroDivisionError: division by zero"


def test_a_module_that_is_no_python(project: Project) -> None:
    project.write("broken.py", "app = (\n")
    assert told(project, "worker", "broken:app") == (
        "trickle: the module 'broken' of the app path 'broken:app' fails at broken.py:1: "
        "SyntaxError: '(' was never closed"
    )


def test_a_module_that_exits(project: Project) -> None:
    project.write("broken.py", "raise SystemExit(0)\n")
    assert told(project, "worker", "broken:app") == (
        "trickle: the module 'broken' of the app path 'broken:app' fails at broken.py:1: it exits "
        "while it is imported: guard that with if __name__ == '__main__'"
    )


def test_a_definition_that_trickle_refuses(project: Project) -> None:
    project.write("broken.py", "import trickle\napp = trickle.App('a/b')\n")
    sentence = told(project, "worker", "broken:app")
    assert sentence.startswith(
        "trickle: the module 'broken' of the app path 'broken:app' fails at broken.py:2: the app"
    )


def test_an_attribute_that_is_missing_or_no_app(project: Project) -> None:
    assert told(project, "worker", "app:ap") == (
        "trickle: the app path 'app:ap' names 'ap', which the module 'app' does not have: "
        "write app:app"
    )
    assert told(project, "worker", "app:Flight") == (
        "trickle: the app path 'app:Flight' names a StructMeta, not a trickle.App: write app:app"
    )
    assert told(project, "worker", "json:dumps") == (
        "trickle: the app path 'json:dumps' names a function, not a trickle.App: json holds no "
        "App; make one by app = trickle.App('name')"
    )


def test_a_traceback_only_for_who_asks(project: Project) -> None:
    project.write("broken.py", "1 / 0\n")
    for args in (["--debug", "worker", "broken:app"], ["worker", "broken:app", "--debug"]):
        done = project.run(*args)
        assert done.returncode == 2
        assert "Traceback" in done.stderr
        assert done.stderr.splitlines()[-1].endswith("ZeroDivisionError: division by zero")


def test_no_app_at_all(project: Project) -> None:
    assert told(project, "topics") == (
        "trickle: which app? write -A MODULE:ATTRIBUTE before the command, or set TRICKLE_APP; "
        "for example: trickle -A app:app topics"
    )


def test_the_app_by_option_argument_or_environment(project: Project) -> None:
    for args, env in (
        (["-A", "app:app", "topics", "--json"], {}),
        (["--app", "app:app", "topics", "--json"], {}),
        (["topics", "--json"], {"TRICKLE_APP": "app:app"}),
    ):
        done = project.run(*args, env=env)
        assert done.returncode == 0, done.stderr
        assert '"words"' in done.stdout


HOSTILE = [
    ["send"],
    ["send", "words"],
    ["send", "words", "x", "y"],
    ["send", "../../etc/passwd", "x"],
    ["send", "", "x"],
    ["send", "words\x1b[2J", "x"],
    ["send", "a" * 250, "x"],
    ["send", "words", "x", "--partition", "-1"],
    ["send", "words", "x", "--partition", "99"],
    ["send", "words", "x", "--partition", "one"],
    ["send", "words", "x", "--repeat", "0"],
    ["send", "words", "x", "--repeat", "9" * 5000],
    ["send", "words", "x", "--timestamp", "nan"],
    ["send", "words", "x", "--timestamp", "2026-01-01T00:00:00"],
    ["send", "words", "x", "--timestamp", "yesterday"],
    ["send", "words", "x", "--timestamp", "1e300"],
    ["send", "words", "x", "--header", "no-value"],
    ["send", "words", "x", "--header", "=value"],
    ["send", "flights", "not json"],
    ["send", "flights", '{"carrier": 5}'],
    ["send", "flights", "[" * 5000],
    ["send", "words", "x", "--unknown"],
    ["tail", "words", "--limit", "0"],
    ["tail", "words", "--limit", "1e3"],
    ["tail", "..", "--no-follow"],
    ["get", "no_such_table"],
    ["get", "by_carrier", "a", "b"],
    ["nothing"],
    ["worker", "app:app", "--web-port", "65536"],
    ["worker", "app:app", "--web-port", "0x10"],
    ["worker", "app:app", "--log-level", "loud"],
    ["worker", "app:app", "--log-format", "xml"],
    ["topics", "extra"],
    ["lag", "--json=yes"],
]


@pytest.mark.parametrize("args", HOSTILE, ids=lambda args: " ".join(args)[:60])
def test_hostile_arguments(project: Project, args: list[str]) -> None:
    before = project.files()
    done = project.run("-A", "app:app", *args)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert "\x1b" not in done.stderr
    assert project.files() == before


def test_options_end_at_two_dashes(project: Project) -> None:
    project.do("send", "words", "--key", "-k", "--", "--json")
    (record,) = project.json("tail", "words", "--from-beginning", "--no-follow")
    assert (record["key"], record["value"]) == ("-k", "--json")


def test_help_lists_the_apps_own_commands(project: Project) -> None:
    done = project.run("-A", "app:app", "--help")
    assert done.returncode == 0
    assert "load" in done.stdout
    assert "Send a word so many times." in done.stdout
    assert project.run("--help").returncode == 0
    assert project.run("--version").stdout.startswith("trickle ")
    assert project.run().returncode == 2


def test_a_command_of_the_app(project: Project) -> None:
    assert project.do("load", "hello", "--times", "2") == "sent 2\n"
    records = project.json("tail", "words", "--from-beginning", "--no-follow")
    assert [record["value"] for record in records] == ["hello", "hello"]
    assert told(project, "-A", "app:app", "load", "x", "--times", "y").startswith("trickle load: ")
