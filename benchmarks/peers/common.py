"""What the peers written in Python share: their arguments."""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["PARTITIONS", "parse"]

PARTITIONS = 4


def parse(*workloads: str) -> Any:
    """Return what a run is told."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workload", choices=workloads)
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--group", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--out", default="")
    parser.add_argument("--records", type=int, required=True)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--guarantee", required=True)
    parser.add_argument("--commit-interval", type=float, required=True)
    return parser.parse_args()
