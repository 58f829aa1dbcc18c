"""What a reader may rely on in every file: its size, its names, and what is not in it."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from tests.source_tree import ROOT, modules, sources, tree

FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70

# Functions that may be longer, each with the reason that splitting it would hurt.
LONG_FUNCTIONS: dict[str, str] = {}

FOLDERS = ("trickle", "tests", "benchmarks", "docs")
FILES = [pytest.param(path, id=str(path.relative_to(ROOT))) for path in sources(*FOLDERS)]
PACKAGE = [pytest.param(path, id=name) for name, path in modules().items()]

# Paths that only one machine has. Built from parts, so that this file does not name one itself.
MACHINE_PATHS = re.compile(
    "|".join(
        f"(?<![\\w.])/{name}/{tail}"
        for name, tail in [
            ("work", r"\w"), ("root", r"[\w.]"), ("home", r"\w"), ("Users", r"\w"),
            ("opt", "wheels"), ("mnt", r"\w"), ("tmp", r"(bash|claude|pytest)"),
        ]
    )
)  # fmt: skip


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [
        n for n in ast.walk(tree(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


@pytest.mark.parametrize("path", FILES)
def test_files_are_short(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines < FILE_LINES_MAX


@pytest.mark.parametrize("path", FILES)
def test_functions_are_short(path: Path) -> None:
    long = {
        f"{path.relative_to(ROOT)}:{node.name}": node.end_lineno - node.lineno + 1
        for node in functions(path)
        if node.end_lineno is not None and node.end_lineno - node.lineno >= FUNCTION_LINES_MAX
    }
    assert {name: lines for name, lines in long.items() if name not in LONG_FUNCTIONS} == {}


def test_reasons_are_for_functions_that_exist() -> None:
    for place in LONG_FUNCTIONS:
        file, _, name = place.partition(":")
        assert name in {node.name for node in functions(ROOT / file)}


@pytest.mark.parametrize("path", FILES)
def test_a_file_opens_with_what_it_is(path: Path) -> None:
    docstring = ast.get_docstring(tree(path))
    assert docstring
    assert len(docstring) > len("...")


@pytest.mark.parametrize("path", PACKAGE)
def test_public_names_are_listed_sorted_and_exist(path: Path) -> None:
    for node in tree(path).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names: list[str] = ast.literal_eval(node.value)
            break
    else:
        assert path.name in {"__init__.py", "__main__.py"}, "a module says in __all__ what it gives"
        return
    assert names == sorted(set(names), key=as_ruff_sorts)
    bound = {name for node in tree(path).body for name in bound_names(node)}
    assert set(names) - bound == set()


def as_ruff_sorts(name: str) -> tuple[int, str]:
    """Order names as ruff's RUF022 does: CONSTANTS, Classes, functions."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def bound_names(node: ast.stmt) -> list[str]:
    """Return the names that a statement of a module's body binds."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return [node.name]
        case ast.Import() | ast.ImportFrom():
            return [alias.asname or alias.name for alias in node.names]
        case ast.Assign():
            return [n.id for t in node.targets for n in ast.walk(t) if isinstance(n, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
        case ast.If() | ast.Try():
            inner = [*node.body, *node.orelse]
            return [name for statement in inner for name in bound_names(statement)]
        case _:
            return []


@pytest.mark.parametrize("path", PACKAGE)
def test_nothing_is_pickled(path: Path) -> None:
    names = {
        alias.name.partition(".")[0]
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    } | {node.module or "" for node in ast.walk(tree(path)) if isinstance(node, ast.ImportFrom)}
    assert names & {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"} == set()


@pytest.mark.parametrize("path", FILES)
def test_no_work_is_left_for_later(path: Path) -> None:
    words = re.compile(r"\b(TODO|FIXME|XXX)\b")
    if path != Path(__file__):
        assert words.findall(path.read_text()) == []


def test_no_file_names_a_path_of_one_machine() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True, text=True,
    )  # fmt: skip
    found: list[str] = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_file():
            text = path.read_text(errors="replace")
            found += [f"{name}: {match.group()}" for match in MACHINE_PATHS.finditer(text)]
    assert found == []
