"""Files that are complete or absent, what killed processes leave, and the lock of a folder."""

import errno
import fcntl
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmpoe.training import lock, scratch, sweep, write_file
from mmpoe.training.files import publish, shown_size

ROOT = Path(__file__).parents[2]


def dead_process():
    """The number of a process that is no more."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def temporary(folder, process, machine=None, number=10**6):
    machine = socket.gethostname() if machine is None else machine
    return folder / f".mmpoe-{machine}-{process}-{number}.tmp"


@pytest.fixture
def events(monkeypatch):
    """The files that are synced, with their sizes, and those that are renamed, in order."""
    found = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor):
        place = Path(f"/proc/self/fd/{descriptor}").readlink()
        size = os.fstat(descriptor).st_size if place.is_file() else "folder"
        found.append((place, size))
        fsync(descriptor)

    def renamed(path, target):
        found.append((path, target))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    return found


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this system has no /proc")
def test_files_are_on_the_disk_before_they_have_their_names(tmp_path, events):
    """Whole, under a temporary name; and the name is brought to the disk at the end."""
    write_file(tmp_path / "file", b"content")
    temporary = events[0][0]
    assert temporary.parent == tmp_path
    assert events == [
        (temporary, len(b"content")),
        (temporary, tmp_path / "file"),
        (tmp_path, "folder"),
    ]
    events.clear()
    with scratch(tmp_path) as made:
        publish(made, tmp_path / "folder")
    assert events == [(made, "folder"), (made, tmp_path / "folder"), (tmp_path, "folder")]


@pytest.mark.fault(76)
def test_what_killed_processes_left_is_swept_and_nothing_else(tmp_path):
    gone = temporary(tmp_path, dead_process()), temporary(tmp_path, dead_process(), number=1)
    gone[0].write_text("half")
    gone[1].mkdir()
    (gone[1] / "case").write_text("half")
    own = temporary(tmp_path, os.getpid()), temporary(tmp_path, os.getppid())
    far = temporary(tmp_path, dead_process(), "elsewhere")
    alike = tmp_path / ".mmpoe-notes.tmp", tmp_path / ".case.123.tmp", tmp_path / "case"
    for path in (*own, far, *alike):
        path.write_text("kept")
    below = tmp_path / "below"
    below.mkdir()
    temporary(below, dead_process()).write_text("kept")
    sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([*own, far, *alike, below])
    assert list(below.iterdir())
    sweep(tmp_path, locked=True)  # nobody else writes there, whatever the machine
    assert sorted(tmp_path.iterdir()) == sorted([*alike, below])
    sweep(tmp_path / "absent")


@pytest.mark.fault(76)
def test_a_swept_link_is_removed_and_not_what_it_leads_to(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "scan").write_text("kept")
    temporary(tmp_path, dead_process()).symlink_to(tmp_path / "data")
    sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
    assert (tmp_path / "data" / "scan").read_text() == "kept"


@pytest.mark.slow
@pytest.mark.fault(76)
@pytest.mark.parametrize(
    "code", ["write_file(folder / 'a', b'new')", "block = scratch(folder); block.__enter__()"]
)
def test_a_killed_writer_leaves_what_a_sweep_removes(code, tmp_path):
    """Killed before the renaming, for real."""
    (tmp_path / "a").write_bytes(b"old")
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from mmpoe.training.files import *\n"
        "folder = Path(sys.argv[1])\n"
        "os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"{code}; os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
        timeout=300,
    )
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_a_scratch_folder_is_removed_or_renamed(tmp_path):
    with scratch(tmp_path) as one, scratch(tmp_path) as other:
        (one / "a").write_text("a")
        (other / "b").write_text("b")
        one.rename(tmp_path / "done")
    assert [p.name for p in tmp_path.iterdir()] == ["done"]
    with pytest.raises(ZeroDivisionError), scratch(tmp_path):
        print(1 / 0)
    assert [p.name for p in tmp_path.iterdir()] == ["done"]


def test_files_may_have_names_of_any_length(tmp_path):
    path = tmp_path / ("ä" * 127)  # 254 bytes, of 255
    write_file(path, b"a")
    write_file(path, b"b")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"b"]


@pytest.mark.fault(78)
def test_a_write_that_fails_names_the_file(tmp_path):
    """The system refuses it halfway."""
    path = tmp_path / "scan.nii.gz"
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))
    try:
        with pytest.raises(OSError, match=r"File too large") as caught:
            write_file(path, bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault(78)
@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0 bytes"), (999, "999 bytes"), (5_400, "5.4 kB"), (3 * 10**9, "3.0 GB")],
)
def test_small_sizes_are_shown_as_well_as_large_ones(size, shown):
    assert shown_size(size) == shown


@pytest.mark.fault(42)
def test_a_lock_is_held_by_one_at_a_time(tmp_path):
    with lock(tmp_path):
        with (
            pytest.raises(ValueError, match=rf"in use by process {os.getpid()} on"),
            lock(tmp_path),
        ):
            pass
        with pytest.raises(ValueError, match=r"is in use"), lock(tmp_path):  # it is held still
            pass
    with lock(tmp_path):
        pass


@pytest.mark.fault(72, simulated=True)
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP])
def test_a_file_system_without_locks_is_told_and_used(number, tmp_path, monkeypatch):
    """By a stub of the system call."""

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    ran = []
    warned = pytest.warns(UserWarning, match=rf"{tmp_path} is not locked, as .* no locks")
    with warned, lock(tmp_path):
        ran.append(True)
    assert ran


@pytest.mark.fault(72, simulated=True)
def test_other_errors_of_a_lock_are_neither_hidden_nor_taken_for_use(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match=r"Input/output error: .*\.lock"), lock(tmp_path):
        pass


@pytest.mark.fault(74)
@pytest.mark.parametrize("what", ["link", "dangling link", "hard link", "pipe", "folder"])
def test_a_lock_that_is_no_file_of_its_own_is_refused(what, tmp_path):
    """And what it leads to stays as it is."""
    valuable, folder = tmp_path / "valuable", tmp_path / "run"
    valuable.write_text("valuable")
    folder.mkdir()
    if what == "link":
        (folder / ".lock").symlink_to(valuable)
    elif what == "dangling link":
        (folder / ".lock").symlink_to(tmp_path / "new")
    elif what == "hard link":
        (folder / ".lock").hardlink_to(valuable)
    elif what == "pipe":
        os.mkfifo(folder / ".lock")
    else:
        (folder / ".lock").mkdir()
    with (
        pytest.raises(ValueError, match=r"but .*\.lock is a link or no file: remove"),
        lock(folder),
    ):
        pass
    assert valuable.read_text() == "valuable"
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.fault(73)
def test_a_killed_process_holds_no_lock_through_those_that_it_forked(tmp_path):
    """They live on for a while, as the processes of a DataLoader do."""
    program = (
        "import os, sys, time; from pathlib import Path\n"
        "from mmpoe.training import lock\n"
        "with lock(Path(sys.argv[1])):\n"
        "    if (child := os.fork()) == 0:\n"
        "        time.sleep(60)\n"
        "        os._exit(0)\n"
        "    print(child, flush=True)\n"
        "    time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    child = int(process.stdout.readline())
    try:
        time.sleep(0.2)  # the child closes it first of all
        with pytest.raises(ValueError, match=rf"process {process.pid}"), lock(tmp_path):
            pass
        process.kill()
        process.wait()
        os.kill(child, 0)  # it lives
        with lock(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()


def test_a_forked_process_may_leave_the_block_and_lock_by_itself(tmp_path):
    with lock(tmp_path):
        child = os.fork()
        if child > 0:
            assert os.waitpid(child, 0)[1] == 0
            with pytest.raises(ValueError, match=r"is in use"), lock(tmp_path):
                pass
    if child == 0:
        try:
            with lock(tmp_path):  # its parent holds it
                code = 1
        except ValueError:
            code = 0
        finally:
            os._exit(code)
