"""Writes requirements.lock: each package that set-up installs, with version and SHA-256.

The lock is for one platform and one version of Python, those of its second line. `make setup`
asks whether it fits.

    python .ci/lock.py --write EXTRAS GROUP
    python .ci/lock.py --fits
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

LOCK = Path(__file__).parents[1] / "requirements.lock"
NAME = "mmpoe"


def here() -> str:
    """Returns the platform, C library and Python that wheels are chosen for."""
    libc = platform.libc_ver()[0] or "no glibc"
    return f"{sysconfig.get_platform()}, {libc}, {sys.implementation.cache_tag}"


def resolve(extras: str, group: str) -> list[dict[str, Any]]:
    """Returns what pip would install, as its report describes it."""
    options = ["--dry-run", "--ignore-installed", "--quiet", "--only-binary=:all:", "--report=-"]
    command = [sys.executable, "-m", "pip", "install", *options, f".[{extras}]", "--group", group]
    done = subprocess.run(command, cwd=LOCK.parent, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)["install"]


def line(package: dict[str, Any]) -> str:
    """Returns the line of a package."""
    about = package["metadata"]
    name = re.sub(r"[-_.]+", "-", about["name"]).lower()
    digest = package["download_info"]["archive_info"]["hashes"]["sha256"]
    return f"{name}=={about['version']} --hash=sha256:{digest}"


def main() -> None:
    """Runs the command; with ``--fits``, exits with 1 if the lock is for another platform."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fits", action="store_true")
    parser.add_argument("--write", nargs=2, metavar=("EXTRAS", "GROUP"))
    options = parser.parse_args()
    if options.fits:
        sys.exit(f"# {here()}" not in LOCK.read_text().splitlines()[:2])
    packages = resolve(*options.write)
    lines = sorted(line(p) for p in packages if p["metadata"]["name"] != NAME)
    LOCK.write_text("\n".join(["# Written by `make lock`, for", f"# {here()}", *lines, ""]))
    print(f"{LOCK.name}: {len(lines)} packages.")


if __name__ == "__main__":
    main()
