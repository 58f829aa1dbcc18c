"""send, tail, topics and lag at a real broker: the embedded log in the project's data directory."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from tests.cli.program import Project


def test_send_tells_where_each_record_went(project: Project) -> None:
    before = time.time()
    assert project.do("send", "words", "hello", "--key", "k") == "words  partition 0  offset 0\n"
    (sent,) = project.json("send", "words", "again", "--timestamp", "12.5")
    assert sent == {"topic": "words", "partition": 0, "offset": 1, "timestamp": 12.5}
    first, second = project.json("tail", "words", "--from-beginning", "--no-follow")
    assert first.pop("timestamp") == pytest.approx(before, abs=30)
    assert first == {
        "topic": "words", "partition": 0, "offset": 0, "key": "k", "value": "hello", "headers": [],
    }  # fmt: skip
    assert (second["timestamp"], second["key"]) == (12.5, None)


def test_send_takes_lines_headers_partition_and_repeat(project: Project) -> None:
    lines = '{"carrier": "AA"}\r\n{"carrier": "UA", "delay": 5}'
    sent = project.json("send", "flights", '{"carrier":"B6"}', "--repeat", "2", "--partition", "1")
    assert [record["partition"] for record in sent] == [1, 1]
    args = ["--header", "a=1", "--header", "b=x=y", "--header", "a=", "--partition", "0"]
    project.do("send", "flights", "-", *args, stdin=lines)
    records = project.json("tail", "flights", "--from-beginning", "--no-follow", "--partition", "0")
    assert [record["value"] for record in records] == [
        {"carrier": "AA", "delay": None},
        {"carrier": "UA", "delay": 5.0},
    ]
    assert records[0]["headers"] == [["a", "1"], ["b", "x=y"], ["a", ""]]


def test_a_key_has_the_bytes_and_the_partition_of_the_apps_own_sends(project: Project) -> None:
    (one,) = project.json("send", "flights", '{"carrier":"AA"}', "--key", "some key")
    (two,) = project.json("send", "delays", '{"carrier":"AA"}', "--key", "some key")
    assert one["topic"] == two["topic"] == "flights"  # an agent's name means its topic
    assert one["partition"] == two["partition"]


def test_a_line_that_does_not_fit_names_itself_and_ends_the_sending(project: Project) -> None:
    done = project.run(
        "-A", "app:app", "send", "flights", "-", stdin='{"carrier":"AA"}\nnonsense\n{}\n'
    )
    assert done.returncode == 2
    assert done.stdout.count("\n") == 1
    assert done.stderr.startswith(
        "trickle: line 2 of standard input is no Flight, written as JSON: 'nonsense': "
    )


def test_null_is_a_tombstone_except_as_text(project: Project) -> None:
    project.do("send", "flights", "null", "--partition", "0")
    project.do("send", "words", "null")
    args = ("--from-beginning", "--no-follow")
    assert [r["value"] for r in project.json("tail", "flights", *args)] == [None]
    assert [r["value"] for r in project.json("tail", "words", *args)] == ["null"]


def test_a_topic_that_nobody_defines_is_not_made(project: Project) -> None:
    for args in (["send", "wrods", "x"], ["tail", "wrods"]):
        done = project.run("-A", "app:app", *args)
        assert done.returncode == 1
        assert done.stderr == (
            "trickle: topic 'wrods' does not exist on the broker (did you mean 'words'?): the "
            "topics of app 'flights' are flights, words\n"
        )
    assert "wrods" not in project.do("topics")


def test_a_topic_of_others_takes_text_as_it_is(project: Project) -> None:
    project.do("send", "words", '{"json": true}')
    project.write("other.py", "import trickle\napp = trickle.App('other')\n")
    done = project.run("-A", "other:app", "send", "words", '"x"', "--key", "5")
    assert done.returncode == 0, done.stderr
    records = project.json("tail", "words", "--from-beginning", "--no-follow")
    assert [(r["key"], r["value"]) for r in records] == [(None, '{"json": true}'), ("5", '"x"')]


def test_tail_shows_control_characters_and_does_not_send_them(project: Project) -> None:
    project.do("send", "words", "a\x1b[31mb\nc", "--key", "\x07")
    text = project.do("tail", "words", "--from-beginning", "--no-follow")
    assert "\\x07  a\\x1b[31mb\\nc" in text
    assert "\x1b" not in text
    (record,) = project.json("tail", "words", "--from-beginning", "--no-follow")
    assert record["value"] == "a\x1b[31mb\nc"


def test_tail_follows_what_comes_and_ends_at_its_limit(project: Project) -> None:
    project.do("send", "words", "old")
    tail = project.start("-A", "app:app", "tail", "words", "--limit", "2", "--json")
    # It prints nothing when it stands ready, so new words come until it has seen one.
    for number in range(200):
        project.do("send", "words", f"new {number}")
        if '"new ' in tail.output or tail.popen.poll() is not None:
            break
    project.do("send", "words", "last")
    assert tail.wait() == 0
    assert tail.output.count("\n") == 2
    assert '"old"' not in tail.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_tail_ends_by_a_signal_without_a_word(project: Project, number: signal.Signals) -> None:
    project.do("send", "words", "old")
    tail = project.start("-A", "app:app", "tail", "words", "--from-beginning")
    tail.wait_for("old")
    tail.signal(number)
    assert tail.wait() == 0
    assert tail.output.count("\n") == 1


def test_a_reader_that_goes_is_no_error(project: Project) -> None:
    project.do("send", "words", "x" * 1000, "--repeat", "200")
    command = f"{sys.executable} -m trickle -A app:app tail words --from-beginning --no-follow"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{command} | head -1"],
        cwd=project.path, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1


def test_all_lines_are_sent_also_where_nobody_reads_what_is_said(project: Project) -> None:
    command = f"seq 1 500 | {sys.executable} -m trickle -A app:app send words - | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=project.path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    rows = project.json("tail", "words", "--from-beginning", "--no-follow")
    assert [row["value"] for row in rows] == [str(number) for number in range(1, 501)]


def test_topics_are_the_apps_and_what_exists(project: Project) -> None:
    (rows,) = project.json("topics")
    assert {row["topic"]: row["exists"] for row in rows} == {
        "flights": False, "words": False, "flights-by_carrier-changelog": False,
    }  # fmt: skip
    project.do("send", "flights", '{"carrier":"AA"}')
    (rows,) = project.json("topics")
    assert rows[0] == {
        "topic": "flights", "exists": True, "partitions": 2, "role": "topic", "key": "str",
        "value": "Flight", "agents": ["delays"],
    }  # fmt: skip
    lines = project.do("topics").splitlines()
    assert lines[0].split() == ["TOPIC", "PARTITIONS", "KEY", "VALUE", "ROLE", "READ", "BY"]
    assert lines[1].split() == ["flights", "2", "str", "Flight", "topic", "delays"]
    assert lines[2].split() == ["words", "missing", "str", "str", "topic", "-"]


def test_lag_is_what_each_agent_has_not_committed(project: Project) -> None:
    assert project.json("lag") == [[]]
    project.do("send", "flights", '{"carrier":"AA"}', "--repeat", "3", "--partition", "1")
    (rows,) = project.json("lag")
    common = {"agent": "delays", "topic": "flights"}
    assert rows == [
        {**common, "partition": 0, "position": None, "end": 0, "lag": 0},
        {**common, "partition": 1, "position": None, "end": 3, "lag": 3},
    ]
    worker = project.start("worker", "app:app", "--no-web")
    worker.wait_for("ready")
    deadline = time.monotonic() + 20
    while project.json("lag")[0][1]["lag"] and time.monotonic() < deadline:
        pass  # each turn is a process that looks
    worker.signal()
    assert worker.wait() == 0
    (rows,) = project.json("lag")
    assert rows[1] == {**common, "partition": 1, "position": 3, "end": 3, "lag": 0}
    assert project.do("lag").splitlines()[-1] == "0 behind in all"


def test_a_group_that_begins_at_the_end_has_no_lag(project: Project) -> None:
    flight = '{"carrier": "AA", "origin": "JFK"}'
    project.do("send", "flights", flight, "--key", "AA", "--repeat", "3")
    assert project.do("lag").splitlines()[-1] == "3 behind in all"
    env = {"TRICKLE_FIRST_POSITION": "latest"}
    assert project.run("-A", "app:app", "lag", env=env).stdout.splitlines()[-1] == "0 behind in all"


def test_numbers_that_json_lacks_are_null(project: Project) -> None:
    project.write(
        "app.py",
        """
import trickle
app = trickle.App("flights")
odd = app.topic("odd", key=str, value=dict, partitions=1, value_serializer="msgpack")

@app.command()
async def fill() -> None:
    await odd.send({"a": [float("nan"), float("-inf"), 1.5]}, key="k")
""",
    )
    project.do("fill")
    (record,) = project.json("tail", "odd", "--from-beginning", "--no-follow")
    assert record["value"] == {"a": [None, None, 1.5]}
