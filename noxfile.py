"""The project's checks, by name: the same names in the README and in .ci/run.

``nox`` alone runs the quick ones. Each session has an environment of its own, made at its first
run and kept: it is installed into again only when pyproject.toml has changed, so a second run
starts at once. Nothing but Python, git and a package index is needed; ``kafka`` and ``bench`` also
want Java 17 and Maven, and fetch Apache Kafka itself.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "tests"]

_PYPROJECT = Path("pyproject.toml")


def _install(session: nox.Session, *groups: str, project: bool = True) -> None:
    """Install dependency groups, and the project in place, unless this was done already."""
    digest = hashlib.sha256(_PYPROJECT.read_bytes()).hexdigest()
    stamp = Path(session.virtualenv.location) / "installed-from"
    if stamp.is_file() and stamp.read_text() == digest:
        session.log("the environment fits pyproject.toml: nothing to install")
        return
    wanted = nox.project.dependency_groups(nox.project.load_toml(_PYPROJECT), *groups)
    session.install(*wanted, *(("-e", ".") if project else ()))
    stamp.write_text(digest)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and format, by ruff."""
    _install(session, "lint", project=False)
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check", *session.posargs)


@nox.session
def types(session: nox.Session) -> None:
    """Types: pyright's strict mode on everything, mypy's on the package."""
    _install(session, "types", "test")
    # Without the option it would look into the checkout's own .venv, which may hold anything.
    session.run("basedpyright", "--pythonpath", f"{session.bin}/python", *session.posargs)
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """All tests but those that need the real Kafka."""
    _install(session, "test")
    session.run("pytest", "-m", "not kafka and not soak", *session.posargs)


@nox.session
def kafka(session: nox.Session) -> None:
    """The tests against a real Apache Kafka, which they start; never skipped."""
    _install(session, "test")
    session.run("pytest", "-m", "kafka", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """Hours of faults on a real Kafka, judged from topics and stores alone; a result table each."""
    _install(session, "test")
    session.run("pytest", "-m", "soak", "-s", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """The documents are true: modules, links, commands and examples."""
    _install(session, "test")
    session.run("pytest", "-m", "not kafka", "tests/test_docs.py", "tests/examples")


@nox.session
def bench(session: nox.Session) -> None:
    """Benchmarks beside the bare client and the peers: nox -s bench -- [workload …]."""
    _install(session, "test", "bench")
    session.run("python", "-m", "benchmarks.compare", *session.posargs)
