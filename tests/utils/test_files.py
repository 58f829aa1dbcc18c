"""Private directories and locks that the kernel frees."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from trickle.utils.files import FileLock, ForeignPathError, private_directory


def test_a_private_directory_is_made_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "above" / "data"
    assert private_directory(path) == path
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    (path / "file").touch()
    assert private_directory(path) == path
    assert (path / "file").exists()


def test_a_symlink_or_a_file_is_no_directory_of_ours(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    link, dangling, file = tmp_path / "link", tmp_path / "dangling", tmp_path / "file"
    link.symlink_to(target)
    dangling.symlink_to(tmp_path / "nowhere")
    file.touch()
    for path, code in ((link, errno.ELOOP), (dangling, errno.ELOOP), (file, errno.ENOTDIR)):
        with pytest.raises(ForeignPathError) as caught:
            private_directory(path)
        assert caught.value.errno == code
        assert caught.value.filename == str(path)
    assert not (tmp_path / "nowhere").exists()


def test_a_lock_is_exclusive_until_it_is_released(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert first.holder() is None
    assert first.acquire()
    assert first.acquire()  # held already
    assert (first.held, second.held) == (True, False)
    assert not second.acquire()
    assert second.holder() == os.getpid()
    first.release()
    first.release()
    with second:
        assert second.acquire()
        assert not first.acquire()
    assert first.acquire()
    first.release()
    assert first.path.exists()  # two processes would lock two files of one name otherwise


def test_a_lock_is_free_when_its_holder_was_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from trickle.utils.files import FileLock\n"
        "lock = FileLock(Path(sys.argv[1])); assert lock.acquire(); print('held', flush=True)\n"
        "time.sleep(60)"
    )
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        lock = FileLock(path)
        assert not lock.acquire()
        assert lock.holder() == holder.pid
        holder.kill()
        holder.wait()
    assert lock.acquire()
    assert lock.holder() == os.getpid()
    lock.release()


def test_a_lock_whose_file_was_deleted_is_not_intact(tmp_path: Path) -> None:
    with FileLock(tmp_path / "lock") as lock:
        assert not lock.intact()
        assert lock.acquire()
        assert lock.intact()
        lock.path.unlink()
        assert lock.held
        assert not lock.intact()


def test_a_lock_is_not_followed_through_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="lock"):
        FileLock(tmp_path / "lock").acquire()
    assert not (tmp_path / "elsewhere").exists()


def test_a_lock_is_not_inherited_by_a_program_that_we_start(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    assert lock.acquire()
    with subprocess.Popen(
        [sys.executable, "-c", "print('runs', flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, close_fds=False,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.readline() == "runs\n"
        lock.release()
        with FileLock(tmp_path / "lock") as other:
            assert other.acquire()
        child.communicate("\n")


@pytest.mark.parametrize("held", [True, False])
def test_a_lock_is_not_inherited_by_a_child_that_is_forked(tmp_path: Path, held: bool) -> None:
    """Neither when its holder dies nor when it gives the lock back."""
    code = (
        "import os, signal, sys, time\n"
        "from pathlib import Path\n"
        "from trickle.utils.files import FileLock\n"
        "lock = FileLock(Path(sys.argv[1])); assert lock.acquire()\n"
        "child = os.fork()\n"
        "if child:\n"
        "    if sys.argv[2] == 'False': lock.release()\n"
        "    print(child, flush=True)\n"
        "    signal.pause()\n"
        "time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "lock"), str(held)],
        stdout=subprocess.PIPE, text=True,
    ) as holder:  # fmt: skip
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        lock = FileLock(tmp_path / "lock")
        try:
            assert lock.acquire() is not held
            holder.kill()
            holder.wait()
            os.kill(child, 0)  # it lives on
            assert lock.acquire()
        finally:
            lock.release()
            holder.kill()
            os.kill(child, signal.SIGKILL)


def test_a_holder_that_wrote_nonsense_is_nobody(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    for text in ("", "somebody\n", "-5\n"):
        lock.path.write_text(text)
        assert lock.holder() is None


def test_the_holder_leaves_a_note_and_learns_who_waits(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "a.lock", "member-1")
    other = FileLock(tmp_path / "a.lock")
    assert (other.note(), other.asked) == ("", False)
    assert lock.acquire()
    assert not other.acquire()
    assert (other.holder(), other.note(), lock.asked) == (os.getpid(), "member-1", False)
    other.ask()
    assert lock.asked
    lock.release()
    assert (other.note(), lock.asked) == ("", False)
    assert lock.acquire()
    assert not lock.asked
    lock.release()
