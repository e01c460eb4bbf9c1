"""The cache of compiled kernels: shared, checked, never in the way, and nobody else's."""

import hashlib
import logging
import os
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from mmpoe.kernels import _cache


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("MMPOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_cache, "_said", set())
    return tmp_path / "cache" / "kernels"


class Compiler:
    """Counts how often it is called."""

    def __init__(self, content=b"machine code"):
        self.content, self.calls = content, 0

    def __call__(self):
        self.calls += 1
        return self.content


class System:
    """The module os with other functions in the place of some."""

    def __init__(self, **functions):
        vars(self).update(functions)
        self.supports_dir_fd = {self.open}

    def __getattr__(self, name):
        return getattr(os, name)


def test_it_is_compiled_once(folder, caplog):
    compiler = Compiler()
    with caplog.at_level(logging.INFO, logger="mmpoe.kernels"):
        for _ in range(3):
            content = _cache.cached("k", ".so", "what it depends on", compiler, "g++")
            assert content == b"machine code"
    assert compiler.calls == 1
    (path,) = folder.iterdir()
    (record,) = caplog.records
    assert record.getMessage().startswith("compiled k (g++) in ")
    assert str(path) in record.getMessage()
    assert folder.stat().st_mode & 0o777 == 0o700


def test_anything_it_depends_on_makes_another():
    first, second = Compiler(b"1"), Compiler(b"2")
    assert _cache.cached("k", ".so", "a", first) == b"1"
    assert _cache.cached("k", ".so", "b", second) == b"2"
    assert _cache.cached("k", ".so", "a", second) == b"1"


@pytest.mark.fault(53)
@pytest.mark.parametrize("damage", [b"", b"machine cod", b"Machine code", b"machine code "])
def test_what_does_not_hold_what_its_name_says_is_built_again(folder, damage, caplog):
    compiler = Compiler()
    _cache.cached("k", ".so", "a", compiler)
    (path,) = folder.iterdir()
    path.write_bytes(damage)
    assert _cache.cached("k", ".so", "a", compiler) == b"machine code"
    assert compiler.calls == 2
    assert "does not hold what its name says" in caplog.text
    assert path.read_bytes() == b"machine code"
    _cache.cached("k", ".so", "a", compiler)
    assert compiler.calls == 2


@pytest.mark.fault(53, simulated=False)
@pytest.mark.parametrize("base", ["file", "~nobody-of-this-name/cache"])
def test_a_folder_that_cannot_be_made_is_done_without(monkeypatch, tmp_path, caplog, base):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MMPOE_CACHE", base if base[0] == "~" else str(tmp_path / base))
    for _ in range(2):
        assert _cache.cached("k", ".so", "a", Compiler()) == b"machine code"
    (record,) = caplog.records  # said once
    assert record.getMessage().startswith("No cache of compiled kernels: ")
    assert "unless MMPOE_CACHE names a folder" in record.getMessage()


@pytest.mark.fault(53, simulated=True)
def test_no_home_folder_is_done_without(monkeypatch, caplog):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("MMPOE_CACHE")
    monkeypatch.setattr(_cache.Path, "home", homeless)
    assert _cache.cached("k", ".so", "a", Compiler()) == b"machine code"
    assert "No cache of compiled kernels: Could not determine home directory." in caplog.text


@pytest.mark.fault(53, simulated=True)
@pytest.mark.parametrize("broken", ["open", "replace"])
def test_a_folder_that_cannot_be_written_is_done_without(monkeypatch, folder, caplog, broken):
    def refuse(path, *arguments, **options):
        if "part-" in str(path):
            raise OSError("the disk is full")
        return os.open(path, *arguments, **options)

    monkeypatch.setattr(_cache, "os", System(**{broken: refuse}))
    with caplog.at_level(logging.INFO, logger="mmpoe.kernels"):
        for _ in range(2):
            assert _cache.cached("k", ".so", "a", Compiler()) == b"machine code"
    said = [r.getMessage() for r in caplog.records]
    assert said[0] == f"Compiled kernels cannot be kept in {folder}: the disk is full."
    assert [s[-10:] for s in said[1:]] == [", not kept"] * 2
    assert list(folder.iterdir()) == []  # no half of one either


def test_what_cannot_be_compiled_is_not_kept(folder):
    def fail():
        raise ValueError("no luck")

    with pytest.raises(ValueError, match="no luck"):
        _cache.cached("k", ".so", "a", fail)
    assert list(folder.iterdir()) == []


def test_many_at_once(folder):
    compiler = Compiler()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: _cache.cached("k", ".so", "a", compiler), range(32)))
    assert set(found) == {b"machine code"}
    assert len(list(folder.iterdir())) == 1


# ---- Files that somebody else has put there ---------------------------------------------------
#
# Each attack gets a cache that holds a file under the right name, and makes it one that others
# could have written. It must not be used, and no check may be there in vain: without any one of
# them, an attack succeeds.

PLANTED = b"planted"
SOMEBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


class Attack:
    """A cache that holds a file, as the one who attacks finds it.

    Arguments:
        base: An empty folder.
    """

    def __init__(self, base):
        self.folder, self.elsewhere = base / "kernels", base / "elsewhere"
        for folder in (self.folder, self.elsewhere):
            folder.mkdir(mode=0o700)
        self.file = self.plant(self.folder)
        self.system, self.pipe = System(), None

    def plant(self, folder, content=PLANTED):
        start = "k-" + hashlib.sha256(b"a").hexdigest()[:32]
        file = folder / f"{start}-{hashlib.sha256(PLANTED).hexdigest()[:32]}.so"
        file.write_bytes(content)
        file.chmod(0o600)
        return file

    def swap_folders(self):
        """Puts another folder in the place of the cache."""
        self.folder.rename(self.folder.with_name("before"))
        self.elsewhere.rename(self.folder)

    def after_opening(self, name, action):
        """Acts between the moment a file or folder is opened and the next one."""
        acted = []

        def opened(path, *arguments, **options):
            descriptor = os.open(path, *arguments, **options)
            if Path(path).name == name and not acted:
                acted.append(action())
            return descriptor

        self.system = System(open=opened)


def give_folder_away(attack):
    os.chown(attack.folder, SOMEBODY, SOMEBODY)


def give_file_away(attack):
    os.chown(attack.file, SOMEBODY, SOMEBODY)


def let_group_write_folder(attack):
    attack.folder.chmod(0o720)


def let_others_write_folder(attack):
    attack.folder.chmod(0o702)


def let_group_write_file(attack):
    attack.file.chmod(0o620)


def let_others_write_file(attack):
    attack.file.chmod(0o602)


def link_folder(attack):
    before = attack.folder.rename(attack.folder.with_name("before"))
    attack.folder.symlink_to(before)


def link_file(attack):
    attack.file.symlink_to(attack.file.rename(attack.elsewhere / "file"))


def link_file_twice(attack):
    os.link(attack.file, attack.elsewhere / "file")


def make_file_a_pipe(attack):
    attack.file.unlink()
    os.mkfifo(attack.file, 0o600)
    attack.pipe = os.open(attack.file, os.O_RDWR)
    os.write(attack.pipe, PLANTED)


def make_file_a_folder(attack):
    attack.file.unlink()
    attack.file.mkdir(mode=0o700)


def change_file(attack):
    attack.file.write_bytes(b"Planted")


def swap_folder_once_it_is_opened(attack):
    attack.folder.chmod(0o777)
    attack.after_opening("kernels", attack.swap_folders)


def swap_folder_once_it_is_checked(attack):
    attack.plant(attack.folder, b"something else")
    attack.plant(attack.elsewhere)
    attack.after_opening("kernels", attack.swap_folders)


def swap_file_once_it_is_opened(attack):
    attack.file.chmod(0o666)

    def swap():
        attack.file.rename(attack.elsewhere / "before")
        attack.plant(attack.folder)

    attack.after_opening(attack.file.name, swap)


ATTACKS = [
    let_group_write_folder,
    let_others_write_folder,
    let_group_write_file,
    let_others_write_file,
    link_folder,
    link_file,
    link_file_twice,
    make_file_a_pipe,
    make_file_a_folder,
    change_file,
    swap_folder_once_it_is_opened,
    swap_folder_once_it_is_checked,
    swap_file_once_it_is_opened,
]
if os.geteuid() == 0:
    ATTACKS += [give_folder_away, give_file_away]


@contextmanager
def attacked(module, base, monkeypatch):
    """Prepares a cache in a folder of its own, for a module to use."""
    base.mkdir()
    attack = Attack(base)
    with monkeypatch.context() as patch:
        patch.setenv("MMPOE_CACHE", str(base))
        yield attack, lambda: patch.setattr(module, "os", attack.system)
    if attack.pipe is not None:
        os.close(attack.pipe)


def succeeds(module, prepare, base, monkeypatch):
    """Whether what was planted is used."""
    with attacked(module, base, monkeypatch) as (attack, start):
        prepare(attack)
        start()
        return module.cached("k", ".so", "a", Compiler()) != b"machine code"


def waits_for_a_pipe(module, base, monkeypatch):
    """Whether a pipe that nobody writes to is waited for."""
    with attacked(module, base, monkeypatch) as (attack, _):
        attack.file.unlink()
        os.mkfifo(attack.file, 0o600)
        thread = threading.Thread(target=module.cached, args=("k", ".so", "a", Compiler()))
        thread.start()
        thread.join(1)
        waits = False
        while thread.is_alive():
            with suppress(OSError):  # there is nobody to write to: it is slow, and does not wait
                os.close(os.open(attack.file, os.O_WRONLY | os.O_NONBLOCK))
                waits = True
            thread.join(0.01)
        return waits


def writes_elsewhere(module, base, monkeypatch):
    """Whether a file lands in a folder that took the place of the cache."""
    with attacked(module, base, monkeypatch) as (attack, _):
        attack.file.unlink()
        module.cached("k", ".so", "a", lambda: attack.swap_folders() or b"machine code")
        return bool(list(attack.folder.iterdir()))


def forgets(module, base, monkeypatch):
    """Whether a file is compiled again, where new files are everybody's by default."""
    before = os.umask(0)
    try:
        with monkeypatch.context() as patch:
            patch.setenv("MMPOE_CACHE", str(base))
            compiler = Compiler()
            for _ in range(2):
                module.cached("k", ".so", "a", compiler)
        return compiler.calls != 1
    finally:
        os.umask(before)


def problems(module, base, monkeypatch):
    """Lists the attacks that succeed."""
    found = [
        prepare.__name__
        for prepare in ATTACKS
        if succeeds(module, prepare, base / prepare.__name__, monkeypatch)
    ]
    others = (waits_for_a_pipe, writes_elsewhere, forgets)
    return found + [f.__name__ for f in others if f(module, base / f.__name__, monkeypatch)]


CHECKS = {
    "the owner": ("status.st_uid == os.geteuid() and ", ""),
    "that the group cannot write": ("stat.S_IWGRP | ", ""),
    "that others cannot write": (" | stat.S_IWOTH", ""),
    "the folder": ("if _is_ours_alone(os.fstat(folder)):", "if True:"),
    "the file": ("if not _is_ours_alone(status):", "if False:"),
    "that the folder is no link": (" | os.O_DIRECTORY | os.O_NOFOLLOW", " | os.O_DIRECTORY"),
    "that the file is no link": ("os.O_NOFOLLOW | os.O_NONBLOCK", "os.O_NONBLOCK"),
    "that it has no second name": ("if status.st_nlink != 1:", "if False:"),
    "that it is a file": ("if not stat.S_ISREG(status.st_mode):", "if False:"),
    "that it does not have to wait": (" | os.O_NONBLOCK", ""),
    "what it holds": (" and file == _name(start, content, suffix)", ""),
    "the folder that is open": ("os.fstat(folder)", "os.stat(path)"),
    "the file that is open": ("os.fstat(opened)", "os.stat(file, dir_fd=folder)"),
    "files of the folder that is open": (
        "os.open(file, options, dir_fd=folder)",
        "os.open(_cache_folder() / file, options)",
    ),
    "where it writes": (
        "os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder)",
        "os.open(_cache_folder() / part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)",
    ),
    "the mode of a new file": ("0o600", "0o666"),
    "the mode of a new folder": ("mode=0o700", "mode=0o777"),
}
"""A check, what it is in the source, and what is left without it."""


def without(check):
    """Returns the module without one of its checks."""
    text, (change, to) = Path(_cache.__file__).read_text(), CHECKS[check]
    assert text.count(change) == 1, f"the source has changed: {change}"
    module = types.ModuleType("mutant")
    exec(compile(text.replace(change, to), "mutant", "exec"), vars(module))
    return module


def test_what_was_kept_by_oneself_is_used(tmp_path, monkeypatch):
    with attacked(_cache, tmp_path / "base", monkeypatch):
        compiler = Compiler()
        assert _cache.cached("k", ".so", "a", compiler) == PLANTED
        assert compiler.calls == 0


@pytest.mark.fault(53, simulated=False)
@pytest.mark.parametrize("prepare", ATTACKS)
def test_what_others_could_have_written_is_not_used(tmp_path, monkeypatch, caplog, prepare):
    assert not succeeds(_cache, prepare, tmp_path / "base", monkeypatch)
    assert "compiling it again" in caplog.text or "No cache of compiled kernels" in caplog.text


def test_no_attack_succeeds(tmp_path, monkeypatch):
    assert problems(_cache, tmp_path, monkeypatch) == []


@pytest.mark.parametrize(
    "check", [pytest.param(c, marks=needs_root if c == "the owner" else ()) for c in CHECKS]
)
def test_without_any_check_an_attack_succeeds(tmp_path, monkeypatch, check):
    assert problems(without(check), tmp_path, monkeypatch)
