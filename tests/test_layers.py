"""Imports go strictly downward, those for type checking included.

A room is a module or a package right under ``trickle``. The list below is the order of all rooms,
lowest first; a module may import rooms that stand above it in this list, and modules of its own
room, as long as those do not import it back. Nothing else keeps a program of this size readable
from either end.
"""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

import pytest

from tests.source_tree import imports, modules

ROOMS: list[str] = [
    "utils",
    "exceptions",
    "types",
    "serializers",
    "untyped",
    "models",
    "metadata",
    "config",
    "identity",
    "context",
    "service",
    "tasks",
    "tree",
    "sensors",
    "transport",
    "ledger",
    "positions",
    "namesakes",
    "membership",
    "drift",
    "bounds",
    "topics",
    "policies",
    "stores",
    "streams",
    "sources",
    "tables",
    "scope",
    "producer",
    "forgotten",
    "consumer",
    "inboxes",
    "fetcher",
    "calls",
    "cadence",
    "patience",
    "snapshots",
    "refusals",
    "outcomes",
    "outstanding",
    "commit",
    "ticks",
    "laneless",
    "agents",
    "lanes",
    "fences",
    "fencing",
    "draining",
    "conductor",
    "topology",
    "definitions",
    "decorators",
    "inside",
    "web",
    "run",
    "app",
    "worker",
    "testing",
    "cli",
    "__main__",
]

# Who may import what only one place shall know. A prefix stands for all modules that begin so.
CLIENTS = {
    "confluent_kafka": ("trickle.transport.kafka",),
    "lmdb": (
        "trickle.transport.embedded",
        "trickle.stores.environment",
        "trickle.stores.homes",
        "trickle.stores.lmdb",
        "trickle.stores.reading",
    ),
    "quart": ("trickle.web", "trickle.cli"),
    "quart_trio": ("trickle.web",),
    "hypercorn": ("trickle.web",),
    "typer": ("trickle.cli",),
}

# Pure modules: no event loop, no client, no clock. Time and positions are arguments.
PURE = [
    "trickle.cadence",
    "trickle.exceptions",
    "trickle.fences",
    "trickle.ledger",
    "trickle.positions",
    "trickle.tables.standby_plan",
    "trickle.types",
    "trickle.utils.durations",
    "trickle.utils.names",
    "trickle.utils.partitioning",
    "trickle.utils.rates",
    "trickle.utils.redact",
]
IMPURE = {"trio", "anyio", "time", "confluent_kafka", "lmdb", "socket", "threading"}


def room(module: str) -> str:
    return module.split(".")[1]


def is_ours(name: str) -> bool:
    return name == "trickle" or name.startswith("trickle.")


def inner_modules() -> list[str]:
    return [name for name in modules() if name != "trickle"]


def test_every_room_has_its_place() -> None:
    assert sorted({room(name) for name in inner_modules()} - set(ROOMS)) == []


@pytest.mark.parametrize("module", inner_modules())
def test_imports_go_downward(module: str) -> None:
    upward = [
        f"line {line}: {module} imports {target}"
        for target, line in imports(module)
        if is_ours(target)
        and target != "trickle"
        and room(target) != room(module)
        and ROOMS.index(room(target)) >= ROOMS.index(room(module))
    ]
    assert upward == []


@pytest.mark.parametrize("module", inner_modules())
def test_nobody_imports_the_package_root(module: str) -> None:
    assert [line for target, line in imports(module) if target == "trickle"] == []


@pytest.mark.parametrize("name", sorted({room(name) for name in inner_modules()}))
def test_no_module_of_a_room_imports_one_that_imports_it(name: str) -> None:
    graph = {
        module: {target for target, _ in imports(module) if is_ours(target)}
        for module in inner_modules()
        if room(module) == name
    }
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("client", sorted(CLIENTS))
def test_a_client_library_is_known_in_one_place(client: str) -> None:
    elsewhere = [
        f"{module}, line {line}"
        for module in inner_modules()
        if not module.startswith(CLIENTS[client])
        for target, line in imports(module)
        if target.partition(".")[0] == client
    ]
    assert elsewhere == []


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_know_no_loop_no_client_and_no_clock(module: str) -> None:
    assert {target.partition(".")[0] for target, _ in imports(module)} & IMPURE == set()
