"""What is free goes back to the system; most in processes of their own: pytest's is too full."""

from __future__ import annotations

import gc
import os
import platform
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import trio

from trickle.utils.memory import give_back

# Blocks below the size that the C library maps one by one; each hundredth stays, so that what is
# freed lies before it, and no end of an arena becomes free.
PEAK = """
import ctypes, sys, trio
from trickle.utils.memory import give_back

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 >> 20

blocks = [libc.malloc(2_000) for _ in range(50_000)]
for block in blocks:
    ctypes.memset(block, 1, 2_000)
peak = resident()
for number, block in enumerate(blocks):
    if number % 100:
        libc.free(block)
freed = resident()

async def main():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(give_back, 0.01)
        with trio.fail_after(20):
            while resident() > freed - 50:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()

assert freed > peak - 20, (peak, freed)
trio.run(main)
"""


# As when partitions move to and fro: each environment is closed and opened again.
ENVIRONMENTS = """
import sys
from pathlib import Path

import trio
from trickle.stores.lmdb import LmdbStore
from trickle.utils.memory import bound_heap

bound_heap()

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

async def main():
    store = LmdbStore(Path(sys.argv[1]))
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        before = resident()
        for turn in range(3):
            held = [await store.open(24, number, ["table"]) for number in range(24)]
            if turn < 2:
                for environment in held:
                    await environment.close()
        print((resident() - before) // 24)
        for environment in held:
            await environment.close()
        nursery.cancel_scope.cancel()

trio.run(main)
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="memory is glibc's")


@glibc
@pytest.mark.parametrize("tunables", ["", "glibc.malloc.tcache_count=0"])
def test_an_environment_that_is_opened_again_takes_no_more_memory(
    tmp_path: Path, tunables: str
) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", ENVIRONMENTS, str(tmp_path)],
        capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "GLIBC_TUNABLES": tunables},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) < 500  # KB each


@glibc
def test_what_a_peak_leaves_goes_back_to_the_system() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PEAK], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr


class Node:
    """Something that refers to itself."""

    def __init__(self) -> None:
        self.me = self


async def test_what_refers_to_itself_goes_without_many_others() -> None:
    gc.disable()
    try:
        gone = weakref.ref(Node())
        assert gone() is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(give_back, 0.01)
            with trio.fail_after(20):
                while gone() is not None:  # noqa: ASYNC110 - nobody is told of a collection
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    finally:
        gc.enable()
