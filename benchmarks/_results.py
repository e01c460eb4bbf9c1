"""Results of benchmarks: a JSON file that says how it was made, and tables to read."""

from __future__ import annotations

__all__ = ["RESULTS", "commit", "facts", "once", "processor", "write", "write_whole"]

import json
import os
import platform
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

RESULTS = Path(__file__).parent / "results"
"""The folder of the results that are committed."""


def facts(command: str, profile: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Returns how a result came about, as the first entries of its file.

    Arguments:
        command: The command that makes it.
        profile: The name of the size of the comparison.
        seeds: The seeds.
    """
    return {
        "command": command,
        "commit": commit(),
        "machine": {
            "cpu": processor(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "seeds": list(seeds),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "profile": profile,
    }


def once(path: Path, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Returns what a file holds, or else does the work and writes it.

    Arguments:
        path: The file.
        work: The work, whose result JSON can hold; NaN is kept as null.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(_plain(work())))
        print(path.stem, flush=True)
    return json.loads(path.read_text())


def write(name: str, content: Mapping[str, Any], markdown: str, folder: Path = RESULTS) -> None:
    """Writes ``<name>.json`` and ``<name>.md``.

    Arguments:
        name: The name of the benchmark.
        content: The results, what :func:`facts` says first. NaN, which JSON does not have, is
            written as null.
        markdown: The tables.
        folder: Where to write.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_plain(content), indent=1, allow_nan=False)
    text = re.sub(r"\[[^\[\]{}\"]*\]", lambda found: " ".join(found[0].split()), text)
    text = text.replace("[ ", "[").replace(" ]", "]")  # numbers of a list on one line
    write_whole(folder / f"{name}.json", text + "\n")
    write_whole(folder / f"{name}.md", markdown.rstrip("\n") + "\n")


def write_whole(path: Path, text: str) -> None:
    """Writes a file whole or not at all.

    Arguments:
        path: The file.
        text: Its content.
    """
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)


def commit() -> str:
    """Returns the commit of the code, with a plus if files were changed, or ``"unknown"``."""
    try:
        found = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", "*.py")
    except (OSError, subprocess.CalledProcessError):  # no git, or not a clone
        return "unknown"
    return found + "+" * bool(changed)


def processor() -> str:
    """Returns the name of the processor, where the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(RESULTS.parents[1]), *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _plain(value: object) -> object:
    """The same in types of JSON."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        return _plain(value.tolist())
    return None if isinstance(value, float) and value - value != 0 else value
