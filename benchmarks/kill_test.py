"""Kill -9 at any moment, and the state in which it leaves files: a table.

In the first part, `fit` saves after each step, and is killed at random moments until it has come
to its end, again and again. After each kill, every checkpoint has to be whole and none lost; at
the end, the weights have to be those of a run that nothing stopped, to the last bit. One of the
runs loads its batches in another process.

In the second part, each subcommand of the medical example is killed before one of its operations
on files, and run again. Each file has to be as before or as after, never in between; the second
run has to succeed, leave no temporary file, and make what a run makes that nothing stopped.

    python -m benchmarks.kill_test
    python -m benchmarks.kill_test --kills 500 --points 20
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

import mmpoe
from benchmarks._results import facts, write
from mmpoe.likelihoods import Normal
from mmpoe.missing import random_subsets
from mmpoe.nn import MLP
from mmpoe.training import Checkpoints, Run, fit, load_checkpoint

STEPS = 30
"""The number of steps of a run of the first part."""

SET = " ".join(
    f"--set {entry}"
    for entry in (
        "size=32",
        "model.widths=[8,8]",
        "model.latents=[2,2]",
        "training.minutes=none",
        "training.steps=4",
        "training.batch=2",
        "training.save_every=1",
    )
)

SUBCOMMANDS = {
    "phantom": "--out data --train 3 --test 2 --size 32 --slices 4 --seed 14 --workers 1",
    "check": "data/index.csv --out checked",
    "prepare": "--index data/index.csv --out prepared --size 32 --spacing 3",
    "train": f"--data data/index.csv --out run --resume --device cpu {SET}",
    "calibrate": "run --set calibration.held_out=0.0 --set calibration.steps=3",
    "synthesize": "run --input-dir data/index.csv --out synthetic --samples 2",
    "evaluate": "run --data data/index.csv --out evaluation --samples 0 --views 1 --no-perceptual",
    "report": "evaluation",
    "downstream": "run --data data/index.csv --out downstream --task registration",
    "import-official": "published.pth --out imported",
    "demo": "--out demo --keep demo/keep --resume --patients 5 --held-out 1 --size 32 "
    "--workers 1 --train.steps 4",
}
"""The options of each subcommand; each uses what those before it have made."""

IMPORTED = (
    "examples.medical_mri_us.__main__",
    "lightning_fabric",
    "matplotlib.pyplot",
    "safetensors.torch",
    "scipy.ndimage",
    "SimpleITK",
    "skimage.metrics",
    "tqdm.auto",
)
"""The modules that the processes import in the course of their work."""

COMPARED = (".safetensors", ".gz", ".npz", ".csv")
"""The files whose bytes have to be the same."""

OTHERS = ("log.csv", "training.safetensors")
"""Files among them that tell of times, or of generators that a subcommand does not seed."""


class Row(NamedTuple):
    """The result of the kills of one run or subcommand; all but the first two should be 0."""

    killed: str
    """The run or subcommand."""
    kills: int
    """How often it was killed."""
    torn: int = 0
    """How often a file or a checkpoint was neither that of before nor that of after."""
    lost: int = 0
    """How often a checkpoint was gone that had been there."""
    failed: int = 0
    """How often it did not succeed when it was run again."""
    different: int = 0
    """How often the end was not that of a run that nothing stopped."""
    left: int = 0
    """How often a temporary file was left at the end."""


def forked(function: Callable[[], Any], folder: Path) -> int:
    """Calls a function in another process, in a folder, without output; returns the process."""
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        try:
            nowhere = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(nowhere, number)
            os.chdir(folder)
            os._exit(function() or 0)
        except BaseException:
            os._exit(99)
    return process


def is_alive(process: int) -> bool:
    """Whether a process that was forked has not ended; it may be waited for all the same."""
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def wait(process: int) -> int:
    """Waits for a process; returns its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


# runs


def learn(folder: Path, workers: int) -> None:
    """Trains a small model, saves after each step, and resumes if there is a checkpoint."""
    torch.manual_seed(0)
    model = mmpoe.MVAE(
        {m: MLP(3, 4, hidden=[8]) for m in "ab"},
        {m: Normal(MLP(2, 3, hidden=[8]), learn_scale=True) for m in "ab"},
    )
    rows = torch.rand(40, 2, 3).unbind()
    samples = [
        {"a": row[0], "b": row[1]} if i % 3 else {"ab"[i % 2]: row[i % 2]}
        for i, row in enumerate(rows)
    ]
    loader = DataLoader(
        samples,  # pyright: ignore[reportArgumentType]
        4,
        shuffle=True,
        collate_fn=model.collate,
        num_workers=workers,
    )

    def objective(model: mmpoe.models.MultimodalVAE, batch: Any, done: float) -> Tensor:  # noqa: ANN401
        x, observed = batch
        return mmpoe.elbo(model(x, random_subsets(observed)[0]), x, observed)

    run = Run(folder, resume=True, save_every=1, log_every=1)
    fit(model, loader, objective, steps=STEPS, run=run, accelerator="cpu", progress=False)


def kill_runs(kills: int, workers: int, folder: Path) -> Row:
    """Kills runs of `fit` at random moments, and looks at their checkpoints."""
    begin, moments = time.monotonic(), random.Random(workers)
    if wait(forked(lambda: learn(folder / "whole", workers), folder)) != 0:
        raise RuntimeError("The run that nothing stops has failed.")
    seconds, whole = time.monotonic() - begin, last_weights(folder / "whole")
    done = torn = lost = failed = different = left = number = 0
    while done < kills:
        place, number, last = folder / str(number), number + 1, 0
        code = -signal.SIGKILL
        while code == -signal.SIGKILL:
            process = forked(lambda place=place: learn(place, workers), folder)
            checkpoints = Checkpoints(place / "checkpoints")
            target = last + moments.randint(0, STEPS // 3)  # and in the midst of a step
            while max(checkpoints.steps(), default=0) < target and is_alive(process):
                time.sleep(0.002)
            time.sleep(moments.uniform(0, 2 * seconds / STEPS))
            os.kill(process, signal.SIGKILL)
            code = wait(process)
            done += code == -signal.SIGKILL
            steps = checkpoints.steps()
            torn += sum(not is_whole(checkpoints, step) for step in steps)
            lost += max(steps, default=0) < last
            last = max(steps, default=0)
        failed += code != 0
        different += code == 0 and not same(last_weights(place), whole)
        left += any(place.rglob(".mmpoe-*"))
        shutil.rmtree(place, ignore_errors=True)
    title = "fit, saving at each step" + ", with a loader process" * (workers > 0)
    return Row(title, done, torn, lost, failed, different, left)


def is_whole(checkpoints: Checkpoints, step: int) -> bool:
    """Whether a checkpoint can be read, and is of its step."""
    try:
        return len(checkpoints.load(step).state["bounds"]) == step
    except ValueError:
        return False


def last_weights(folder: Path) -> dict[str, Tensor]:
    """The weights at the end of a run."""
    return load_checkpoint(Checkpoints(folder / "checkpoints").path(STEPS))[0]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two mappings hold the same tensors, to the last bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# subcommands


def call(name: str, kill_at: int | None, told: Path | None = None) -> int:
    """Runs a subcommand in this process, in the present folder.

    Arguments:
        name: Its name.
        kill_at: Before which operation on files in the folder to kill the process, from 0; None
            for none.
        told: A file that gets a letter for each operation.
    """
    cli: Any = import_module("examples.medical_mri_us.__main__")
    folder, seen = Path.cwd(), 0
    letters = None if told is None else os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if not changes(event, arguments, folder):
            return
        if seen == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 1
        if letters is not None:
            os.write(letters, b".")

    sys.argv = ["kill_test", name, *SUBCOMMANDS[name].split()]
    sys.addaudithook(hook)
    return cli.main()


def changes(event: str, arguments: tuple[Any, ...], folder: Path) -> bool:
    """Whether an event of the interpreter is about to change a file in a folder."""
    if event == "open":
        path, _, flags = arguments
        if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return False
    elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
        path = arguments[0]
    else:
        return False
    return (
        isinstance(path, str | os.PathLike)
        and Path.cwd() / path != folder
        and ((Path.cwd() / path).is_relative_to(folder))
    )


def kill_subcommand(name: str, points: int, folder: Path) -> Row:
    """Kills a subcommand at some of its operations on files.

    Arguments:
        name: Its name.
        points: At how many of them.
        folder: A folder whose entry ``base`` holds what the subcommands before it have made;
            what this one makes is added.
    """
    base, work, whole = folder / "base", folder / "work", folder / "whole"
    told = folder / f"{name}.operations"
    shutil.copytree(base, whole)
    code = wait(forked(lambda: call(name, None, told), whole))
    if code not in (0, 1):  # 1 if some cases cannot be used
        raise RuntimeError(f"{name}, which nothing stops, has failed with {code}.")
    before, after, number = contents(base), contents(whole), told.stat().st_size
    points = min(points, number)
    torn = lost = failed = different = left = 0
    for point in (number * (2 * k + 1) // (2 * points) for k in range(points)):
        shutil.copytree(base, work)
        killed = wait(forked(lambda point=point: call(name, point), work))
        if killed != -signal.SIGKILL:
            raise RuntimeError(f"{name} was to be killed at operation {point}, but was not.")
        found = contents(work)
        torn += any(
            found[p] not in (before.get(p), after.get(p))
            for p in found
            if found[p] and "checkpoints" not in p.parts
        )
        for checkpoints in map(Checkpoints, work.rglob("checkpoints")):
            torn += any(not is_whole(checkpoints, step) for step in checkpoints.steps())
        lost += any(p not in found for p in before if p in after)
        failed += wait(forked(lambda: call(name, None), work)) != code
        left += any(work.rglob(".mmpoe-*"))
        different += contents(work) != after
        shutil.rmtree(work)
    shutil.rmtree(base)
    whole.rename(base)
    return Row(
        f"{name}, of {number} operations on files", points, torn, lost, failed, different, left
    )


def contents(folder: Path) -> dict[Path, str]:
    """The digests of the files of a folder that are compared; of others, their names."""
    return {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.suffix in COMPARED and path.name not in OTHERS
        else ""
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".mmpoe-" not in str(path.relative_to(folder))
    }


def write_published(path: Path) -> None:
    """Writes small weights as the published code does."""
    from examples.medical_mri_us.official import save_checkpoint
    from mmpoe.models import published_mmhvae

    torch.manual_seed(0)
    save_checkpoint(published_mmhvae(size=32, width=4, max_width=8, blocks=1), path)


# tables


def table(rows: list[Row]) -> list[tuple[str, ...]]:
    """Returns the rows as text, their head first, and the sum."""
    total = Row("all", *(sum(column) for column in list(zip(*rows, strict=True))[1:]))
    return [tuple(Row._fields), *(tuple(map(str, row)) for row in [*rows, total])]


def shown(rows: list[Row]) -> str:
    """Returns the table for a terminal."""
    lines = table(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def markdown(rows: list[Row], about: dict[str, Any]) -> str:
    """Returns the page of the results."""
    head, *lines = [f"| {' | '.join(line)} |" for line in table(rows)]
    explained = "\n".join(f"- *{name}*: {text}" for name, text in MEANING.items())
    return (
        "# Kills\n\n"
        f"`{about['command']}`, commit {about['commit']}, {about['date']}, "
        f"{about['machine']['cpu']}, {about['seconds']} s.\n\n"
        f"{explained}\n\n" + "\n".join([head, "|---|---:|---:|---:|---:|---:|---:|", *lines])
    )


MEANING = {
    "torn": "a file or checkpoint was neither that of before nor that of after",
    "lost": "a checkpoint or file was gone that had been there",
    "failed": "the same command did not succeed afterwards",
    "different": "it did not make what it makes when nothing stops it",
    "left": "a temporary file was left at the end",
}


def main() -> None:
    """Kills, prints the table, and exits with 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="random kills of runs, at least")
    parser.add_argument("--points", type=int, default=5, help="kills of each subcommand")
    parser.add_argument("--only", nargs="*", choices=SUBCOMMANDS, default=list(SUBCOMMANDS))
    parser.add_argument("--smoke", action="store_true", help="a few kills only")
    parser.add_argument("--write", action="store_true", help="write the table")
    options = parser.parse_args()
    if options.smoke:
        options.kills, options.points, options.only = 4, 1, ["phantom", "check", "prepare"]
    begin = time.monotonic()
    torch.set_num_threads(1)
    for module in IMPORTED:  # once, in place of in each of the processes
        import_module(module)
    rows = []
    with tempfile.TemporaryDirectory(prefix="mmpoe-kills-") as name:
        folder = Path(name)
        (folder / "base").mkdir()
        os.environ["MMPOE_CACHE"] = str(folder / "cache")
        for workers, share in ((0, 0.8), (1, 0.2)):
            place = folder / f"runs-{workers}"
            place.mkdir()
            rows.append(kill_runs(round(share * options.kills), workers, place))
            print(shown(rows[-1:]).splitlines()[1], flush=True)
        write_published(folder / "base" / "published.pth")
        for subcommand in options.only:
            rows.append(kill_subcommand(subcommand, options.points, folder))
            print(shown(rows[-1:]).splitlines()[1], flush=True)
    print(f"\n{shown(rows)}")
    if options.write:
        about = {**facts("make kill-test", "full", []), "seconds": round(time.monotonic() - begin)}
        write("kills", {**about, "rows": [row._asdict() for row in rows]}, markdown(rows, about))
    if any(sum(row[2:]) for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
