"""The worker as a process: readiness, signals, exit codes, what it says, and its bounded end."""

from __future__ import annotations

import json
import platform
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.cli.program import Project

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HEAD = """
import time, trio, trickle
app = trickle.App("work", commit_interval=0.05{settings})
words = app.topic("words", key=str, value=str, partitions=1)
done = app.topic("done", key=str, value=str, partitions=1)

@app.agent(words)
async def slow(stream: trickle.Stream[str]) -> None:
    async for word in stream:
"""


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Project]:
    project = Project(tmp_path)
    yield project
    project.close()


def agent(project: Project, body: str, settings: str = "") -> None:
    """Write an app with one agent whose loop has this body."""
    indented = "\n".join(f"        {line}" for line in body.splitlines())
    project.write("app.py", HEAD.format(settings=settings) + indented + "\n")


def outputs(project: Project) -> list[str]:
    records = project.json("tail", "done", "--from-beginning", "--no-follow")
    return [record["value"] for record in records]


def test_it_is_ready_answers_probes_drains_and_exits_0(made: Project) -> None:
    agent(made, "done.send_nowait(word)")
    made.do("send", "words", "hello")
    worker = made.start("worker", "app:app")
    line = worker.wait_for("ready after")
    url = line.rpartition("web on ")[2].strip()
    assert httpx.get(f"{url}/health/ready").json() == {"ready": True, "detail": "running"}
    assert httpx.get(f"{url}/health/live").status_code == 200
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert "SIGTERM: draining" in worker.output
    assert "drained and committed in" in worker.output.splitlines()[-1]
    assert outputs(made) == ["hello"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_busy_worker_finishes_the_event_in_hand_and_commits(
    made: Project, number: signal.Signals
) -> None:
    """The signal comes while an event is in hand: that one settles, the next does not begin."""
    body = "print('took', word, flush=True)\nawait trio.sleep(0.5)\ndone.send_nowait(word)"
    agent(made, body)
    made.do("send", "words", "-", stdin="one\ntwo\n")
    worker = made.start("worker", "app:app", "--no-web")
    worker.wait_for("took one")
    worker.signal(number)
    assert worker.wait() == 0
    assert outputs(made) == ["one"]
    again = made.start("worker", "app:app", "--no-web")
    again.wait_for("took two")
    again.signal()
    assert again.wait() == 0
    assert "took one" not in again.output
    assert outputs(made) == ["one", "two"]


def test_the_second_signal_cancels_at_once(made: Project) -> None:
    agent(made, "print('took', word, flush=True)\nawait trio.sleep(60)", ", drain_timeout=60")
    made.do("send", "words", "one")
    worker = made.start("worker", "app:app", "--no-web")
    worker.wait_for("took one")
    worker.signal()
    worker.wait_for("draining")
    began = time.monotonic()
    worker.signal()
    assert worker.wait() == 3
    assert time.monotonic() - began < 5
    assert "cancelled by the second signal before the drain ended" in worker.output


def test_a_signal_after_the_drain_changes_nothing(made: Project) -> None:
    """A second signal that comes as the process ends, drained and committed."""
    agent(made, "done.send_nowait(word)")
    with (made.path / "app.py").open("a") as source:
        source.write(
            "import atexit, os, signal\natexit.register(os.kill, os.getpid(), signal.SIGTERM)\n"
        )
    worker = made.start("worker", "app:app", "--no-web")
    worker.wait_for("ready after")
    worker.signal()
    assert worker.wait() == 0
    assert "drained and committed in" in worker.output


def test_what_timers_alone_have_sent_is_committed_at_the_end(made: Project) -> None:
    """Nothing is consumed, and there is something to commit all the same."""
    made.write(
        "app.py",
        """
import trickle
app = trickle.App("work", commit_interval=8, commit_interval_min=8)
done = app.topic("done", key=str, value=int, partitions=1)
count = 0

@app.timer(0.02)
async def tick() -> None:
    global count
    count += 1
    done.send_nowait(count)
    print("ticked", count, flush=True)
""",
    )
    worker = made.start("worker", "app:app", "--no-web")
    worker.wait_for("ticked 20")
    worker.signal()
    assert worker.wait() == 0
    ticked = worker.output.count("ticked")
    records = made.json("tail", "done", "--from-beginning", "--no-follow")
    assert [record["value"] for record in records] == list(range(1, ticked + 1))


def test_a_broken_pipe_of_an_agents_own_is_a_failure(made: Project) -> None:
    agent(made, "raise BrokenPipeError(32, 'the database has gone')")
    made.do("send", "words", "one")
    worker = made.start("worker", "app:app", "--no-web")
    assert worker.wait() == 1
    assert "the database has gone" in worker.output


def test_nobody_has_to_read_what_it_tells(made: Project) -> None:
    """Standard error is closed, or a pipe that nobody reads."""
    agent(made, "done.send_nowait(word)")
    for closing in ("2>&-", "2> >(true)"):
        made.do("send", "words", "hello")
        command = f"exec {sys.executable} -m trickle worker app:app --no-web --json {closing}"
        with subprocess.Popen(
            ["bash", "-c", command], cwd=made.path, stdout=subprocess.PIPE, text=True
        ) as worker:
            assert worker.stdout is not None
            assert '"event": "ready"' in next(line for line in worker.stdout if "ready" in line)
            worker.send_signal(signal.SIGTERM)
            worker.stdout.read()
            assert worker.wait(20) == 0
    assert outputs(made) == ["hello", "hello"]


def test_the_third_signal_leaves_where_it_stands(made: Project) -> None:
    body = """print('took', word, flush=True)
with trio.CancelScope(shield=True):
    await trio.sleep(60)"""
    agent(made, body, ", drain_timeout=60")
    made.do("send", "words", "one")
    worker = made.start("worker", "app:app", "--no-web")
    worker.wait_for("took one")
    worker.signal()
    worker.wait_for("draining")
    worker.signal()
    worker.wait_for("events in hand are dropped")
    worker.signal()
    assert worker.wait(2) == 3
    assert worker.output.endswith("trickle: stopped at once by the third signal\n")


def test_an_agent_that_hangs_is_cancelled_and_named(made: Project) -> None:
    agent(made, "print('took', word, flush=True)\nawait trio.sleep(60)", ", drain_timeout=0.5")
    made.do("send", "words", "one")
    worker = made.start("worker", "app:app", "--no-web")
    worker.wait_for("took one")
    began = time.monotonic()
    worker.signal()
    assert worker.wait() == 3
    assert time.monotonic() - began < 4
    last = worker.output.splitlines()[-1]
    assert "stopped before the drain ended: agent 'slow' at partition 0 of words" in last


def test_an_agent_that_hangs_shielded_cannot_keep_the_process(made: Project) -> None:
    body = """print('took', word, flush=True)
with trio.CancelScope(shield=True):
    await trio.sleep(60)"""
    agent(made, body, ", drain_timeout=0.5")
    made.do("send", "words", "one")
    worker = made.start("worker", "app:app", "--no-web")
    worker.wait_for("took one")
    began = time.monotonic()
    worker.signal()
    assert worker.wait() == 3
    assert time.monotonic() - began < 8
    assert (
        "before the drain ended: agent 'slow' at partition 0 of words did not end"
        in worker.output.splitlines()[-1]
    )


def test_an_agent_that_blocks_the_loop_cannot_keep_the_process(made: Project) -> None:
    body = "print('took', word, flush=True)\ntime.sleep(60)"
    agent(made, body, ", drain_timeout=0.5")
    made.do("send", "words", "one")
    worker = made.start("worker", "app:app", "--no-web")
    worker.wait_for("took one")
    worker.signal()
    assert worker.wait(9) == 3
    last = worker.output.splitlines()[-1]
    assert "the event loop is held by slow at " in last
    assert "app.py:" in last


def test_a_thread_of_the_users_cannot_keep_the_process(made: Project) -> None:
    body = """import threading
threading.Thread(target=time.sleep, args=(60,)).start()
print('took', word, flush=True)"""
    agent(made, body)
    made.do("send", "words", "one")
    worker = made.start("worker", "app:app", "--no-web")
    worker.wait_for("took one")
    worker.signal()
    assert worker.wait(9) == 0
    assert worker.output.splitlines()[-1].startswith("trickle: left without waiting for the thre")


def test_a_failing_agent_ends_it_with_its_sentence_after_what_settled_is_committed(
    made: Project,
) -> None:
    agent(made, "done.send_nowait(word)\nif word == 'bad':\n    raise ValueError('no such word')")
    made.do("send", "words", "-", stdin="good\nbad\nlater\n")
    worker = made.start("worker", "app:app", "--no-web")
    assert worker.wait() == 1
    assert "Traceback" not in worker.output
    lines = [line for line in worker.output.splitlines() if line.startswith("trickle: ")]
    place = "agent 'slow' failed at the event of words [0] at offset 1"
    assert lines == [
        f"trickle: {place}: ValueError: no such word (app.py:12 in slow)",
        "trickle: --debug shows the traceback",
    ]
    assert "stopped by a failure; " in worker.output
    assert outputs(made) == ["good"]
    debug = made.start("worker", "app:app", "--no-web", "--debug")
    assert debug.wait() == 1
    assert "Traceback" in debug.output


def test_start_and_end_as_json(made: Project) -> None:
    agent(made, "pass")
    worker = made.start("worker", "app:app", "--no-web", "--json", "--log-level", "error")
    worker.wait_for('"ready"')
    worker.signal()
    assert worker.wait() == 0
    events = [json.loads(line) for line in worker.output.splitlines()]
    assert [event["event"] for event in events] == ["starting", "ready", "stopping", "ended"]
    assert events[0]["settings"]["web"] == {"value": "false", "source": "--no-web"}
    assert events[1]["partitions"] == 1
    assert (events[3]["drained"], events[3]["exit_code"]) == (True, 0)


def test_a_failure_as_json(made: Project) -> None:
    agent(made, "raise ValueError('no such word')")
    made.do("send", "words", "bad")
    worker = made.start("worker", "app:app", "--no-web", "--json")
    line = worker.wait_for('"ended"')
    assert worker.wait() == 1
    ended = json.loads(line)
    assert (ended["drained"], ended["exit_code"], ended["signal"]) == (False, 1, None)
    place = "agent 'slow' failed at the event of words [0] at offset 0"
    assert ended["errors"] == [f"{place}: ValueError: no such word (app.py:10 in slow)"]


def test_log_lines_as_json(made: Project) -> None:
    agent(made, "pass")
    worker = made.start("worker", "app:app", "--no-web", "--log-format", "json")
    worker.wait_for('"ready after')
    worker.signal()
    assert worker.wait() == 0
    lines = [json.loads(line) for line in worker.output.splitlines()]
    assert lines[0]["message"] == "starting"
    assert lines[0]["settings"]["commit_interval"] == {"value": "0.05", "source": "argument"}
    assert lines[-1]["exit_code"] == 0


def test_no_secret_is_shown_anywhere(made: Project) -> None:
    """The canary stands in the URL, in the client's options and in the web's token."""
    settings = """,
    broker="kafka://user:canary-url@127.0.0.1:1", broker_timeout=1, web_token="canary-token",
    client={"sasl.password": "canary-option", "sasl.username": "canary-user"}"""
    agent(made, "pass", settings)
    for args in ([], ["--debug", "--log-level", "debug"], ["--log-format", "json"], ["--json"]):
        worker = made.start("worker", "app:app", *args)
        assert worker.wait(30) in (1, 2)
        assert "canary" not in worker.output
        assert "****" in worker.output
    for command in (["topics"], ["lag"], ["send", "words", "x"]):
        done = made.run("-A", "app:app", "--debug", *command)
        assert done.returncode in (1, 2)
        assert "canary" not in done.stdout + done.stderr


def test_a_broker_that_is_not_there_is_an_error_within_its_time(made: Project) -> None:
    agent(made, "pass", ', broker="kafka://127.0.0.1:1", broker_timeout=2')
    began = time.monotonic()
    worker = made.start("worker", "app:app", "--no-web")
    assert worker.wait() == 1
    assert time.monotonic() - began < 10
    assert "Traceback" not in worker.output
    last = worker.output.splitlines()[-1]
    assert last.startswith("trickle: ")
    assert "127.0.0.1:1" in last


def test_a_signal_before_it_is_ready_ends_it_at_once(made: Project) -> None:
    agent(made, "pass", ', broker="kafka://127.0.0.1:1", broker_timeout=60')
    worker = made.start("worker", "app:app", "--no-web", "--json")
    worker.wait_for('"starting"')
    worker.signal()
    assert worker.wait(5) == 0
    assert "stopped by SIGTERM before it was ready" in worker.output


def test_a_web_port_that_is_taken(made: Project) -> None:
    agent(made, "pass")
    one = made.start("worker", "app:app")
    port = one.wait_for("ready after").rpartition(":")[2].strip()
    two = made.start("worker", "app:app", "--web-port", port)
    assert two.wait() == 2
    assert f"trickle: web_port={port} is taken on 127.0.0.1 by another program" in two.output
    one.signal()
    assert one.wait() == 0


def test_a_look_inside_by_sigusr1(made: Project) -> None:
    agent(made, "pass")
    worker = made.start("worker", "app:app", "--no-web")
    worker.wait_for("ready after")
    worker.signal(signal.SIGUSR1)
    worker.wait_for("slow[0]")
    worker.signal()
    assert worker.wait() == 0
    assert "Current thread" in worker.output or "Thread 0x" in worker.output


THREADS = """
import ctypes, threading
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
together = threading.Barrier(9)
def allocate():
    libc.malloc(1000)
    together.wait()
threads = [threading.Thread(target=allocate) for _ in range(8)]
for thread in threads:
    thread.start()
together.wait()
for thread in threads:
    thread.join()
libc.malloc_stats()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="arenas are glibc's")
def test_threads_share_the_c_library_s_memory(made: Project) -> None:
    agent(made, THREADS)
    made.do("send", "words", "one")
    worker = made.start("worker", "app:app", "--no-web", env={"MALLOC_ARENA_MAX": ""})
    worker.wait_for("mmap bytes")
    worker.signal()
    assert worker.wait() == 0
    assert 0 < worker.output.count("Arena ") <= 2
