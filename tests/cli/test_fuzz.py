"""Whatever the arguments: an exit code of the four, and nothing left behind by a refusal."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cli.program import APP
from trickle.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMMANDS = ["send", "tail", "get", "topics", "lag", "load"]
NAMES = ["words", "flights", "by_carrier", "delays", "..", "/", "", "-", "--", "a b", "x" * 300]
OPTIONS = [
    "--key", "--header", "--partition", "--timestamp", "--repeat", "--limit", "--json", "--debug",
    "--no-follow", "--from-beginning", "--times", "--help", "-h", "-A", "--app",
]  # fmt: skip
VALUES = ["0", "-1", "1", "1e3", "nan", "{", "{}", "null", "=", "a=b", "\x00", "\ud800", "ü"]
arguments = st.tuples(
    st.sampled_from(COMMANDS),
    st.lists(st.sampled_from([*NAMES, *OPTIONS, *VALUES]) | st.text(max_size=5), max_size=5),
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current directory, with an app that other tests do not import."""
    path = tmp_path_factory.mktemp("fuzz")
    (path / "fuzzed.py").write_text(APP)
    (path / "pyproject.toml").write_text("")
    before, search = os.getcwd(), list(sys.path)
    os.chdir(path)
    yield path
    os.chdir(before)
    sys.path[:] = search
    sys.modules.pop("fuzzed", None)


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(drawn=arguments)
def test_any_arguments(
    directory: Path, capsys: pytest.CaptureFixture[str], drawn: tuple[str, list[str]]
) -> None:
    command, rest = drawn
    if command == "tail":
        rest = ["--no-follow", *rest]
    if command == "send" and "-" in rest:
        return  # it would read pytest's standard input
    before = {path for path in directory.rglob("*") if "__pycache__" not in path.parts}
    code = main(["-A", "fuzzed:app", command, *rest])
    said = capsys.readouterr()
    assert code in {0, 1, 2}
    if code == 2:
        after = {path for path in directory.rglob("*") if "__pycache__" not in path.parts}
        assert after == before
        assert said.err
    if "--debug" not in rest:
        assert "Traceback" not in said.err
    assert "internal error" not in said.err
