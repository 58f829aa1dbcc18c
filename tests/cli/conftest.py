"""Fixtures of the command line's tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cli.program import Project

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["project"]


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """A project with the app of ``tests.cli.program.APP``."""
    made = Project(tmp_path)
    yield made
    made.close()
