"""What is free goes back to the system, in a process of its own: pytest's is too full to tell."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library's memory is glibc's")
def test_what_a_peak_leaves_goes_back_to_the_system() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PEAK], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
