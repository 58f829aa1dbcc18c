"""The package's sources as the structural tests see them: module names, trees, imports."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import NamedTuple

__all__ = ["ROOT", "Import", "imports", "modules", "sources", "tree"]

ROOT = Path(__file__).parent.parent


class Import(NamedTuple):
    """One import of one module, with the line that makes it."""

    target: str
    line: int


@cache
def modules() -> dict[str, Path]:
    """Return the package's modules by dotted name; a package is its ``__init__``."""
    found: dict[str, Path] = {}
    for path in sorted((ROOT / "trickle").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def sources(*folders: str) -> list[Path]:
    """Return the Python files of some folders of the checkout, and of its top."""
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [*found, *sorted(ROOT.glob("*.py"))]


@cache
def tree(path: Path) -> ast.Module:
    """Return a file's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(module: str) -> list[Import]:
    """Return what a module imports, wherever it does: in functions and for type checking too.

    ``from trickle.streams import lane`` imports the module ``trickle.streams.lane`` where there
    is one, else the package itself.
    """
    known = modules()
    path = known[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: list[Import] = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                above = parts[: len(parts) - node.level + 1]
                base = ".".join([*above, node.module] if node.module else above)
            for alias in node.names:
                deeper = f"{base}.{alias.name}"
                found.append(Import(deeper if deeper in known else base, node.lineno))
    return found
