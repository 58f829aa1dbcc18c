"""Who this worker is on the broker: its transactional id.

``{app}-{host}-{hash of the data directory's real path}-{n}``, with n the lowest slot whose lock
file in the data directory is free. So the id is stable over restarts, also where the data
directory was wiped, and no two live workers share one.
"""

from __future__ import annotations

import hashlib
import re
import socket
from pathlib import Path

import msgspec

from trickle.exceptions import ConfigurationError, StoreError
from trickle.utils.files import FileLock, ForeignPathError, private_directory

__all__ = ["Identity", "claim_identity"]

SLOTS_MAX = 1000


class Identity(msgspec.Struct, frozen=True):
    """A transactional id, and the lock that keeps it ours until it is released.

    Attributes:
        transactional_id: empty under at-least-once.
    """

    transactional_id: str
    lock: FileLock | None

    def release(self) -> None:
        """Let another worker have it."""
        if self.lock is not None:
            self.lock.release()


def claim_identity(app_id: str, data_dir: Path) -> Identity:
    """Take the lowest free slot.

    Raises:
        ConfigurationError: the data directory cannot be made or used.
        StoreError: all slots are taken.
    """
    try:
        slots = private_directory(private_directory(private_directory(data_dir) / app_id) / "slots")
        real = str(slots.resolve())
    except (ForeignPathError, OSError) as error:
        raise ConfigurationError(
            f"data_dir={str(data_dir)!r} cannot be used: {error.strerror or error} "
            f"({error.filename}); choose a directory that this user may write to"
        ) from error
    digest = hashlib.sha256(real.encode()).hexdigest()[:12]
    host = re.sub(r"[^a-zA-Z0-9._-]", "-", socket.gethostname())[:60]
    for number in range(SLOTS_MAX):
        lock = FileLock(slots / f"{number}.lock")
        try:
            taken = lock.acquire()
        except OSError as error:
            raise ConfigurationError(
                f"data_dir={str(data_dir)!r}: {lock.path} cannot be locked: {error.strerror}"
            ) from error
        if taken:
            return Identity(f"{app_id}-{host}-{digest}-{number}", lock)
    raise StoreError(f"data_dir={str(data_dir)!r}: all of its {SLOTS_MAX} slots are taken")
