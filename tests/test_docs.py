"""The documents are true: every module is listed, links lead somewhere, commands and code work."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from collections import Counter
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from trio.testing import MockClock

import trickle.testing
from tests.faults.plan import FAULTS
from tests.source_tree import ROOT, modules, tree

README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
RELIABILITY = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
PAGES = [
    pytest.param(path, id=path.name) for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))
]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """Return README's commands, each a line."""
    lines = [line for block in blocks(README, "sh") for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def listed_modules() -> list[str]:
    return re.findall(r"^- `(trickle[\w.]*)`: ", ARCHITECTURE, re.MULTILINE)


def sessions() -> dict[str, ast.FunctionDef]:
    return {
        node.name: node
        for node in tree(ROOT / "noxfile.py").body
        if isinstance(node, ast.FunctionDef) and node.decorator_list
    }


# architecture.md


def test_architecture_lists_every_module_once() -> None:
    listed = Counter(listed_modules())
    assert sorted(set(modules()) - set(listed)) == [], "missing from docs/architecture.md"
    assert sorted(set(listed) - set(modules())) == [], "in docs/architecture.md, but no module"
    assert [name for name, count in listed.items() if count > 1] == []


def test_architecture_keeps_the_modules_of_a_package_together() -> None:
    rooms = [".".join(name.split(".")[:2]) for name in listed_modules()]
    runs = Counter(room for room, _ in groupby(rooms))
    assert [room for room, count in runs.items() if count > 1] == []


def test_architecture_goes_the_way_of_a_record() -> None:
    way = [
        "trickle.transport", "trickle.fetcher", "trickle.conductor", "trickle.streams",
        "trickle.agents", "trickle.tables", "trickle.producer", "trickle.commit", "trickle.run",
        "trickle.worker", "trickle.web", "trickle.cli",
    ]  # fmt: skip
    listed = listed_modules()
    assert sorted(way, key=listed.index) == way


# reliability.md


def test_each_test_that_reliability_names_exists() -> None:
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", RELIABILITY)
    assert len(named) > 100
    there: dict[str, set[str]] = {}
    for file, _ in named:
        if file not in there:
            there[file] = {
                node.name
                for node in ast.walk(tree(ROOT / "tests" / file))
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            }
    assert [f"{file}::{name}" for file, name in named if name not in there[file]] == []


def test_each_fault_of_the_checker_that_reliability_names_exists() -> None:
    named = {
        name
        for names in re.findall(r"checker \((`[^):]*)", RELIABILITY)
        for name in re.findall(r"`([\w-]+)`", names)
    }
    assert named == FAULTS.keys() - {"pause"}


def test_reliability_has_a_row_for_each_fault() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+) \| (.+) \| (.+) \|$", RELIABILITY, re.MULTILINE)
    assert [int(number) for number, *_ in rows] == list(range(1, 57))


# All pages


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_that_exist(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


# README


def test_readme_is_one_screen() -> None:
    assert len(README.splitlines()) <= 75


def test_readme_s_commands_start_what_exists() -> None:
    for command in commands():
        for part in command.split(" && "):
            words = shlex.split(part)
            for word in words[1:]:
                if word.endswith(".py"):
                    assert (ROOT / word).is_file(), command
            if "nox" in words[0]:
                assert words[2] in sessions(), command
            if words[0].endswith("trickle") and "-A" in words:
                module = words[words.index("-A") + 1].partition(":")[0]
                assert module == "delays" or (ROOT / f"{module.replace('.', '/')}.py").is_file()


def test_readme_names_the_sessions_that_there_are() -> None:
    (sentence,) = re.findall(r"Checks are nox sessions: (.*?)\. How", README, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", sentence)) == set(sessions())


def test_ci_runs_readme_s_test_command_and_the_kafka_session() -> None:
    (test_command,) = [command for command in commands() if command.endswith("nox -s tests")]
    assert f'"{test_command}"' in CI
    assert "nox -s kafka" in CI


@pytest.fixture
def delays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """Give README's app as the module that README says it is."""
    (source,) = blocks(README, "python")
    (tmp_path / "delays.py").write_text(source)
    module = ModuleType("delays")
    module.__file__ = str(tmp_path / "delays.py")
    monkeypatch.setitem(sys.modules, "delays", module)
    exec(compile(source, module.__file__, "exec"), module.__dict__)  # noqa: S102 - our own README
    return module


async def test_readme_s_app_does_what_readme_says(delays: Any, autojump_clock: MockClock) -> None:
    del autojump_clock  # the simulation runs on it
    async with trickle.testing.run(delays.app) as t:
        for minutes in (90, 10):
            flight = delays.Flight(carrier="AA", arr_delay=minutes)
            await t.send(delays.flights, flight, key="AA")
        await t.settled()
        assert delays.by_carrier["AA"] == 2
        assert [event.value.arr_delay for event in t.sent(delays.late)] == [90]
