"""Copies of the project, in which one place at a time is broken."""

from __future__ import annotations

__all__ = ["Copy", "Found"]

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from .places import Mutant

ROOT = Path(__file__).parents[2]
PARTS = ("mmpoe", "examples", "benchmarks", "tests")
FILES = ("conftest.py", "pyproject.toml")

PATIENCE = 300
"""How long the tests of a mutant may take, in seconds; one that hangs was found."""


class Found(NamedTuple):
    """How a mutant fared."""

    test: str | None
    """The test that failed; None if all passed."""
    seconds: float
    """How long that took."""


class Copy:
    """A copy of the project in a folder.

    Arguments:
        folder: The folder, which is made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._written = folder, time.time()
        folder.mkdir()
        leave = shutil.ignore_patterns("__pycache__", "results")
        for part in PARTS:
            shutil.copytree(ROOT / part, folder / part, ignore=leave)
        for file in FILES:
            shutil.copy2(ROOT / file, folder / file)

    def find(self, mutant: Mutant) -> Found:
        """Breaks a place, and returns which of its tests fails.

        Raises:
            ValueError: If the place is not there, or there twice.
            RuntimeError: If the tests cannot be run, as of a mutant that cannot be imported.
        """
        file = self.folder / mutant.file
        text = file.read_text(encoding="utf-8")
        if text.count(mutant.old) != 1:
            raise ValueError(
                f"{mutant.file} should hold what {mutant.broken!r} changes once, but does "
                f"{text.count(mutant.old)} times."
            )
        started = time.monotonic()
        self._write(file, text.replace(mutant.old, mutant.new))
        try:
            code, output = self._test(mutant.tests.split())
        finally:
            self._write(file, text)
        seconds = time.monotonic() - started
        if code == 0:
            return Found(None, seconds)
        if code is None:
            return Found(f"does not end in {PATIENCE} s", seconds)
        failed = re.search(r"^(?:FAILED|ERROR) \S*?(\w+\.py::\w+)", output, re.MULTILINE)
        if code != 1 or failed is None:
            raise RuntimeError(f"{mutant.broken}: the tests cannot be run.\n{output[-3000:]}")
        return Found(failed[1], seconds)

    def problem(self, tests: list[str]) -> str | None:
        """Returns what is printed if tests fail here as they are; None if they pass."""
        code, output = self._test(tests)
        return None if code == 0 else output[-5000:]

    def _write(self, file: Path, text: str) -> None:
        """Writes a source file, at a time that tells Python that it is another one."""
        file.write_text(text, encoding="utf-8")
        self._written += 1
        os.utime(file, (self._written, self._written))

    def _test(self, tests: list[str]) -> tuple[int | None, str]:
        """Runs tests until one fails; returns pytest's exit code, None if there is no end."""
        options = ["-x", "-q", "-rfE", "--tb=line", "-p", "no:cacheprovider", "-p", "no:randomly"]
        done = subprocess.Popen(
            [sys.executable, "-m", "pytest", *options, *tests],
            cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            output, _ = done.communicate(timeout=PATIENCE * max(1, len(tests)))
        except subprocess.TimeoutExpired:
            done.kill()
            done.communicate()
            return None, ""
        return done.returncode, output
