"""A real Apache Kafka for tests and benchmarks, without Docker: a broker of our own on loopback.

The jars come from Maven once for each checkout (``.kafka/``, named after the pom's content; a
file lock lets parallel sessions share one download). A broker is a directory with its properties,
its data and its log, and a Java process with ports chosen when it starts.

The process must not outlive whoever started it, however that ended. So it runs under a guard, a
tiny Python process in a session of its own, that holds the read end of a pipe: when the pipe
closes, because we closed it or because we were killed, the guard kills the broker. (A parent-death
signal would fire when the *thread* that started the broker ends, and Trio's threads come and go.)

It is never skipped: a broker that cannot be started is an error with the path of its log.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

__all__ = [
    "BrokerError",
    "KafkaBroker",
    "Node",
    "free_ports",
    "kafka_broker",
    "kafka_jars",
    "make_nodes",
    "start_cluster",
]

_POM = Path(__file__).with_name("kafka") / "pom.xml"
_CACHE = Path(__file__).parent.parent / ".kafka"
_READY_TIMEOUT = 90.0  # seconds; 3 on an idle machine
_STOP_TIMEOUT = 30.0
_START_ATTEMPTS = 3  # a port that was free when chosen may be taken when the broker binds it

_GUARD = """
import os, subprocess, sys, threading
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=sys.stderr)
sys.stdout.write(f"{child.pid}\\n"); sys.stdout.flush()
def watch():
    sys.stdin.buffer.read()
    child.kill()
threading.Thread(target=watch, daemon=True).start()
child.wait()
os._exit(0)  # not by way of a thread that still reads
"""

_LOGGING = """
status = error
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = [%d] %p %m (%c)%n
rootLogger.level = info
rootLogger.appenderRef.console.ref = console
"""


class BrokerError(RuntimeError):
    """The broker cannot be started or stopped; the message names its log."""


def kafka_jars() -> Path:
    """Return the directory of Kafka's jars, fetched by Maven where this checkout has none yet."""
    name = hashlib.sha256(_POM.read_bytes()).hexdigest()[:12]
    jars = _CACHE / f"jars-{name}"
    if jars.is_dir():
        return jars
    _CACHE.mkdir(exist_ok=True)
    with (_CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not jars.is_dir():
            fresh = Path(tempfile.mkdtemp(prefix="fetch-", dir=_CACHE))
            try:
                _fetch(fresh)
                fresh.rename(jars)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
    return jars


def _fetch(into: Path) -> None:
    command = [
        *("mvn", "-q", "-B", "-f", str(_POM)),
        *("dependency:copy-dependencies", f"-DoutputDirectory={into}"),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    except FileNotFoundError:
        raise BrokerError("the real Kafka needs Maven (mvn) and Java 17: install them") from None
    if done.returncode:
        raise BrokerError(f"mvn could not fetch Kafka's jars:\n{done.stdout}\n{done.stderr}")


class Node(NamedTuple):
    """A broker's place in a cluster.

    Attributes:
        number: from 1 on.
        controllers: the ports of all nodes' controllers, in order.
        cluster: its id.
    """

    number: int
    controllers: tuple[int, ...]
    cluster: str


class KafkaBroker:
    """One broker, combined with its controller; a context manager that starts and removes it.

    Args:
        properties: server properties beside, or in place of, those that it needs.
        heap: Java's ``-Xmx``.
        keep: leave data and log in their directory at the end.
        behind: the port of a proxy: a second listener is advertised there, so that clients that
            start at the proxy stay behind it; the proxy connects to :attr:`inner_port`.
        node: its place in a cluster, else it is alone.

    Attributes:
        inner_port: of that second listener; 0 without a proxy.
    """

    def __init__(
        self,
        properties: Mapping[str, str | int | bool] | None = None,
        *,
        heap: str = "1g",
        keep: bool = False,
        behind: int | None = None,
        node: Node | None = None,
    ) -> None:
        self.keep = keep
        self.inner_port = 0
        self.directory = Path(tempfile.mkdtemp(prefix="trickle-kafka-"))
        self.log = self.directory / "broker.log"
        self._extra = dict(properties or {})
        self._heap = heap
        self._behind = behind
        self._node = node
        self._port = 0
        self._guard: subprocess.Popen[bytes] | None = None
        self._pid = 0

    @property
    def address(self) -> str:
        """``host:port`` of its listener."""
        return f"127.0.0.1:{self._port}"

    @property
    def url(self) -> str:
        """The broker URL as trickle takes it."""
        return f"kafka://{self.address}"

    @property
    def pid(self) -> int:
        """The Java process, 0 where none runs."""
        return self._pid

    def start(self) -> None:
        """Start it, and return once it answers a metadata request; a stopped one keeps its data.

        Raises:
            BrokerError: it ended, or gave no answer in 90 seconds.
        """
        if self._guard is not None:
            raise BrokerError("the broker runs already")
        fresh = not self._port
        if fresh and self._node is not None:
            raise BrokerError("a broker of a cluster starts first with the others: start_cluster")
        for attempt in range(_START_ATTEMPTS):
            if fresh:
                self._format()
            try:
                self._launch()
                self._wait_ready()
            except BrokerError:
                self.kill()
                taken = "Address already in use" in self._tail()
                if not (fresh and taken and attempt < _START_ATTEMPTS - 1):
                    raise
            else:
                return

    def launch(self) -> None:
        """Start it as a part of a cluster, for the first time; it answers once most are there."""
        self._format()
        self._launch()

    def wait_ready(self) -> None:
        """Wait until it answers.

        Raises:
            BrokerError: it ended, or gave no answer in 90 seconds.
        """
        self._wait_ready()

    def stop(self) -> None:
        """End it cleanly, as an operator would; its data stay for the next start."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, as a power cut would; its data stay for the next start."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Freeze it: its sockets stay open, and nothing is answered."""
        os.kill(self._pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen one go on."""
        os.kill(self._pid, signal.SIGCONT)

    def close(self) -> None:
        """End it and remove its directory, unless ``keep`` is set."""
        self.kill()
        if self.keep:
            sys.stderr.write(f"\nthe Kafka broker's log and data are kept: {self.log}\n")
        else:
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.keep = True
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _format(self) -> None:
        """Choose ports, write the properties and format the storage."""
        self._port, controller, inner = free_ports(3)
        host = "127.0.0.1"
        node = self._node or Node(1, (controller,), _cluster_id())
        controller = node.controllers[node.number - 1]
        listeners = f"PLAINTEXT://{host}:{self._port}"
        advertised = listeners
        if self._behind is not None:
            self.inner_port = inner
            listeners += f",PROXIED://{host}:{inner}"
            advertised += f",PROXIED://{host}:{self._behind}"
        properties: dict[str, str | int | bool] = {
            "process.roles": "broker,controller",
            "node.id": node.number,
            "controller.quorum.voters": ",".join(
                f"{number}@{host}:{port}" for number, port in enumerate(node.controllers, 1)
            ),
            "controller.listener.names": "CONTROLLER",
            "listeners": f"{listeners},CONTROLLER://{host}:{controller}",
            "advertised.listeners": advertised,
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": (
                "PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT"
            ),
            "log.dirs": str(self.directory / "data"),
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 4,
            # Small and compacted often: a coordinator that takes seconds to read them all after a
            # restart was seen to miss the marker of a transaction that ended meanwhile, so that the
            # group's offsets stayed pending for ever (Kafka 4.3.1).
            "offsets.topic.segment.bytes": 1_048_576,
            "log.cleaner.backoff.ms": 1_000,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 4,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "group.initial.rebalance.delay.ms": 0,
            # A killed broker may register again only when its last session is over (9 s).
            "broker.session.timeout.ms": 3_000,
            "broker.heartbeat.interval.ms": 500,
            "auto.create.topics.enable": False,
            **self._extra,
        }
        lines = [f"{name}={_property(value)}" for name, value in properties.items()]
        shutil.rmtree(self.directory / "data", ignore_errors=True)
        self._properties.write_text("\n".join(lines) + "\n")
        (self.directory / "log4j2.properties").write_text(_LOGGING)
        # "=" forms keep a cluster id that begins with a dash from being read as an option.
        command = self._java("kafka.tools.StorageTool", "format", f"--cluster-id={node.cluster}")
        # Eligible leader replicas take a lone broker's leadership away at each unclean restart, and
        # a coordinator (of 4.3.1) that loads meanwhile skips the markers of partitions without a
        # leader, as if they had been deleted: their transactions hang for ever.
        command += ["--feature", "eligible.leader.replicas.version=0"]
        command += ["-c", str(self._properties)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise BrokerError(
                f"Kafka's storage could not be formatted:\n{done.stdout}{done.stderr}"
            )

    @property
    def _properties(self) -> Path:
        return self.directory / "server.properties"

    def _java(self, main: str, *arguments: str) -> list[str]:
        logging = self.directory / "log4j2.properties"
        options = [f"-Xmx{self._heap}", f"-Dlog4j2.configurationFile={logging}"]
        return ["java", *options, "-cp", f"{kafka_jars()}/*", main, *arguments]

    def _launch(self) -> None:
        command = [sys.executable, "-S", "-c", _GUARD]
        command += self._java("kafka.Kafka", str(self._properties))
        with self.log.open("ab") as log:
            self._guard = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                cwd=self.directory,
            )
        assert self._guard.stdout is not None
        # The guard's one line; the broker's own output goes to the log.
        self._pid = int(self._guard.stdout.readline())

    def _wait_ready(self) -> None:
        assert self._guard is not None
        admin = AdminClient({"bootstrap.servers": self.address, "log_level": 0})
        deadline = time.monotonic() + _READY_TIMEOUT
        while time.monotonic() < deadline:
            if self._guard.poll() is not None:
                break
            with contextlib.suppress(KafkaException):
                admin.list_topics(timeout=1.0)
                return
        raise BrokerError(f"the Kafka broker did not start; its log is {self.log}:\n{self._tail()}")

    def _tail(self) -> str:
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-30:])
        return ""

    def _end(self, how: signal.Signals) -> None:
        guard, self._guard = self._guard, None
        if guard is None:
            return
        assert guard.stdin is not None
        assert guard.stdout is not None
        if guard.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, how)
            with contextlib.suppress(subprocess.TimeoutExpired):
                guard.wait(_STOP_TIMEOUT)
        with contextlib.suppress(BrokenPipeError):
            guard.stdin.close()  # a broker that still runs is killed by its guard
        guard.stdout.close()
        guard.wait(_STOP_TIMEOUT)
        self._pid = 0


def _property(value: str | int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _cluster_id() -> str:
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")


def free_ports(count: int) -> list[int]:
    """Return ports that nobody has, for now."""
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in found]


def make_nodes(count: int) -> list[Node]:
    """Return the places of a cluster of so many brokers."""
    controllers, cluster = tuple(free_ports(count)), _cluster_id()
    return [Node(number, controllers, cluster) for number in range(1, count + 1)]


def start_cluster(brokers: Sequence[KafkaBroker]) -> None:
    """Start the brokers of a cluster for the first time, and wait until all answer."""
    for broker in brokers:
        broker.launch()
    for broker in brokers:
        broker.wait_ready()


@pytest.fixture(scope="session")
def kafka_broker(request: pytest.FixtureRequest) -> Iterator[KafkaBroker]:
    """Give the session's own Apache Kafka; its log is kept where a test failed."""
    with KafkaBroker() as broker:
        yield broker
        broker.keep = broker.keep or request.session.testsfailed > 0
