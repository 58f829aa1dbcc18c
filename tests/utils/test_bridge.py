"""The way between Trio and threads: results, errors, cancellation, and how a thread ends."""

from __future__ import annotations

import queue
import threading

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trickle.utils.bridge import Bridge, open_bridge

LIMIT = 20.0  # seconds that any one test may take


async def test_calls_run_on_one_thread_in_order_and_results_come_back() -> None:
    ran: list[tuple[int, threading.Thread]] = []

    def note(number: int) -> int:
        ran.append((number, threading.current_thread()))
        return -number

    with trio.fail_after(LIMIT):
        async with open_bridge("owner") as bridge:
            bridge.post(note, 0)
            assert [await bridge.call(note, number) for number in (1, 2, 3)] == [-1, -2, -3]
    assert [number for number, _ in ran] == [0, 1, 2, 3]
    (thread,) = {thread for _, thread in ran}
    assert (thread.name, thread.daemon) == ("owner", True)
    assert thread is not threading.current_thread()


async def test_a_calls_error_is_its_callers_and_the_thread_goes_on() -> None:
    def fail() -> None:
        raise LookupError("mine")

    with trio.fail_after(LIMIT):
        async with open_bridge("owner") as bridge:
            with pytest.raises(LookupError, match="mine"):
                await bridge.call(fail)
            assert await bridge.call(int, "7") == 7


async def test_a_call_cancelled_before_it_has_begun_never_runs() -> None:
    """The thread is held by one call; the second waits and is cancelled; then the first ends."""
    gate = threading.Event()
    ran: list[str] = []
    with trio.fail_after(LIMIT):
        async with open_bridge("owner") as bridge, trio.open_nursery() as nursery:
            nursery.start_soon(bridge.call, gate.wait, LIMIT)
            with trio.CancelScope() as scope:
                scope.cancel()
                await bridge.call(ran.append, "cancelled")
            assert scope.cancelled_caught
            gate.set()
            await bridge.call(ran.append, "next")
    assert ran == ["next"]


async def test_a_call_cancelled_while_it_runs_runs_to_its_end() -> None:
    """The call is known to run when its caller is cancelled; the thread then finishes it."""
    begun, gate = trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()
    ran: list[str] = []

    def slow() -> None:
        token.run_sync_soon(begun.set)
        gate.wait(LIMIT)
        ran.append("slow")

    with trio.fail_after(LIMIT):
        async with open_bridge("owner") as bridge, trio.open_nursery() as nursery:
            nursery.start_soon(bridge.call, slow)
            await begun.wait()
            nursery.cancel_scope.cancel()
            gate.set()
        assert ran == ["slow"]


async def test_the_end_waits_for_what_is_queued_but_not_longer_than_it_may() -> None:
    ran: list[int] = []
    with trio.fail_after(LIMIT):
        async with open_bridge("owner") as bridge:
            for number in range(100):
                bridge.post(ran.append, number)
        assert ran == list(range(100))
        gate = threading.Event()
        async with open_bridge("hangs", close_timeout=0.01) as bridge:
            bridge.post(gate.wait, LIMIT)
        assert await bridge.close(0.01) is False  # it hangs still, and we have gone on
        gate.set()
        await bridge.wait_ended()


async def test_the_end_is_bounded_when_the_block_is_cancelled() -> None:
    gate = threading.Event()
    bridges: list[Bridge] = []
    with trio.fail_after(LIMIT):
        with trio.CancelScope() as scope:
            async with open_bridge("hangs", close_timeout=0.01) as bridge:
                bridges.append(bridge)
                bridge.post(gate.wait, LIMIT)
                scope.cancel()
                await trio.sleep_forever()
        gate.set()
        await bridges[0].wait_ended()


async def test_an_error_of_a_post_ends_the_thread_and_whoever_waits_for_it() -> None:
    """A call is queued behind the post that fails: it is told, as are all that come later."""
    gate = threading.Event()

    def fail() -> None:
        gate.wait(LIMIT)
        raise LookupError("posted")

    with trio.fail_after(LIMIT):
        async with open_bridge("owner") as bridge:
            bridge.post(fail)
            async with trio.open_nursery() as nursery:

                async def call() -> None:
                    with pytest.raises(trio.BrokenResourceError) as caught:
                        await bridge.call(int)
                    assert isinstance(caught.value.__cause__, LookupError)

                nursery.start_soon(call)
                await wait_all_tasks_blocked()
                gate.set()
            with pytest.raises(LookupError, match="posted"):
                await bridge.wait_ended()
            await call()


async def test_idle_runs_between_calls_and_serves_them_itself() -> None:
    """The idle call stays inside itself until a call that it serves lets it go on."""
    entered = trio.Event()
    token = trio.lowlevel.current_trio_token()
    bridges: queue.SimpleQueue[Bridge] = queue.SimpleQueue()
    inside = True
    idled = 0

    def idle() -> None:
        nonlocal idled
        idled += 1
        if idled > 1:
            return
        bridge = bridges.get(timeout=LIMIT)  # the thread may be earlier than the block
        token.run_sync_soon(entered.set)
        while inside:
            bridge.run_pending(LIMIT)

    def leave() -> str:
        nonlocal inside
        inside = False
        return "served"

    with trio.fail_after(LIMIT):
        async with open_bridge("poller", idle=idle) as bridge:
            bridges.put(bridge)
            await entered.wait()
            assert await bridge.call(lambda: idled) == 1
            assert await bridge.call(leave) == "served"
            while await bridge.call(lambda: idled) < 3:
                pass
        await bridge.wait_ended()
        assert bridge.stopped


async def test_what_is_left_for_later_runs_once_calls_first_and_not_after_the_end() -> None:
    ran: list[str] = []
    done = trio.Event()

    def late() -> None:
        ran.append("late")
        bridge.later(3600.0, lambda: ran.append("never"))
        bridge.to_trio(done.set)

    with trio.fail_after(LIMIT):
        async with open_bridge("owner") as bridge:

            def first() -> None:
                bridge.later(3600.0, lambda: ran.append("replaced"))
                bridge.later(0.0, late)
                bridge.post(ran.append, "call")

            bridge.post(first)
            await done.wait()
    assert ran == ["call", "late"]


async def test_an_error_of_idle_ends_the_thread() -> None:
    def idle() -> None:
        raise LookupError("idle")

    with trio.fail_after(LIMIT):
        async with open_bridge("poller", idle=idle) as bridge:
            with pytest.raises(LookupError, match="idle"):
                await bridge.wait_ended()
            with pytest.raises(trio.BrokenResourceError):
                await bridge.call(int)


def test_a_thread_that_outlives_trio_stops_by_itself() -> None:
    """Trio has ended when the thread's next word to it fails: it stops."""
    gate = threading.Event()
    kept: list[Bridge] = []

    async def main() -> None:
        async with open_bridge("left", close_timeout=0.01) as bridge:
            kept.append(bridge)
            bridge.post(gate.wait, LIMIT)

    trio.run(main)
    (bridge,) = kept
    bridge.to_trio(print)
    assert bridge.stopped
    gate.set()
