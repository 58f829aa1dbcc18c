"""Environments of the peers' own, made at the first run and kept under .nox/.

A peer's pins must not bend ours, nor ours a peer's. Each environment is named after what is in it,
so that another version makes another one.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["REQUIREMENTS", "java_classes", "peer_versions", "python_of"]

ROOT = Path(__file__).parent.parent
HOME = ROOT / ".nox"
STREAMS = Path(__file__).parent / "peers" / "kafka_streams"
INSTALL_SECONDS_MAX = 900

REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "bytewax": ("bytewax[kafka]==0.21.1", "orjson==3.13.0"),
    "faust": ("faust-streaming[uvloop,orjson,cython,rocksdict]==0.15.3",),
    "quix": ("quixstreams==3.28.1",),
}


def python_of(peer: str) -> str:
    """Return the interpreter of a peer's environment, which is made where it is missing."""
    wanted = REQUIREMENTS[peer]
    name = hashlib.sha256("\n".join((sys.version, *wanted)).encode()).hexdigest()[:12]
    home = HOME / f"bench-{peer}-{name}"
    python = home / "bin" / "python"
    if not (home / "installed").exists():
        shutil.rmtree(home, ignore_errors=True)
        _do(sys.executable, "-m", "venv", str(home))
        _do(str(python), "-m", "pip", "install", "--quiet", *wanted)
        (home / "installed").touch()
    return str(python)


def java_classes() -> str:
    """Return the class path of the Kafka Streams contestant, built where it has changed."""
    sources = sorted(path for path in STREAMS.rglob("*") if path.is_file())
    name = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    home = HOME / f"bench-kafka-streams-{name}"
    if not home.is_dir():
        fresh = HOME / f"{home.name}-making"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        jars = fresh / "jars"
        _do("mvn", "-q", "-B", "-f", str(STREAMS / "pom.xml"),
            "dependency:copy-dependencies", f"-DoutputDirectory={jars}")  # fmt: skip
        java = [str(path) for path in sources if path.suffix == ".java"]
        _do("javac", "-cp", f"{jars}/*", "-d", str(fresh / "classes"), *java)
        fresh.rename(home)
    return f"{home / 'classes'}:{home / 'jars'}/*"


def peer_versions() -> dict[str, str]:
    """Return which releases of the peers take part."""
    names = [wanted[0].split("==") for wanted in REQUIREMENTS.values()]
    found = {re.sub(r"\[.*", "", name): number for name, number in names}
    pom = (STREAMS / "pom.xml").read_text()
    (streams,) = re.findall(r"<artifactId>kafka-streams</artifactId>\s*<version>(\d\S+)</", pom)
    return {**found, "kafka-streams": streams}


def _do(*command: str) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS_MAX
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stdout}\n{done.stderr}")
