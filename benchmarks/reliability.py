"""Faults and the behaviour of the library: a table, and how many faults it survives.

Each fault is injected by tests, which say its number with the marker ``fault``; they are run, and
a fault is passed if all of its tests are. Faults that no test injects are listed as not covered.
Tests that a machine cannot run (a GPU, rights that the superuser has) are counted as skipped.

A test that puts something in the place of the system, so that a function raises what a full disk
would, says so with ``simulated=True``. The table says of each fault under which conditions tests
of it passed: real ones, simulated ones, or both.

    python -m benchmarks.reliability
    python -m benchmarks.reliability 31 34
    python -m benchmarks.reliability --write
"""

from __future__ import annotations

import argparse
import inspect
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from benchmarks._results import facts, write

ROOT = Path(__file__).parents[1]


class Fault(NamedTuple):
    """Something that goes wrong."""

    injected: str
    """The fault."""
    behaviour: str
    """The behaviour that is right."""


FAULTS = {
    # input images
    1: Fault("a missing image file", "an error names case, modality and path"),
    2: Fault("an empty image file", "an error names the case; the others continue"),
    3: Fault(
        "a truncated image (NIfTI, MHA, NRRD)", "an error, never zeros in place of what is gone"
    ),
    4: Fault("one flipped byte in a compressed image", "an error, by its checksum"),
    5: Fault("text in a file named .nii.gz", "an error names the case"),
    6: Fault("a 4D image", "an error, unless a channel is chosen"),
    7: Fault("NaN or infinite voxels", "an error with their number"),
    8: Fault("a constant volume", "an error asks whether it is missing"),
    9: Fault("scaled and integer intensities", "their scale is honoured"),
    10: Fault("64-bit integers", "results are written in types that readers know"),
    11: Fault("a singular or NaN affine", "an error"),
    12: Fault("a sheared affine", "an error suggests to resample"),
    13: Fault("qform and sform that differ", "an error, unless one is chosen"),
    14: Fault("other orientations", "results are in the space of the input"),
    15: Fault("modalities on different grids", "an error shows both"),
    16: Fault("spacings that cannot be", "an error or a warning"),
    17: Fault("sizes that do not fit the network", "padded or cropped, and put back"),
    18: Fault("a DICOM folder with several series", "they are listed, to choose one"),
    # index of a data set
    19: Fault("duplicate ids", "an error names the lines"),
    20: Fault("ids that begin alike", "ids are compared whole"),
    21: Fault("an unknown modality", "an error names the nearest"),
    22: Fault("a case without modalities", "an error, or dropped and counted"),
    23: Fault("a modality that no training case has", "an error before training"),
    24: Fault("a patient in training and test", "an error"),
    25: Fault("paths that leave the data set", "refused"),
    26: Fault("archives whose members leave their folder", "refused"),
    27: Fault("a CSV with BOM, CRLF, blanks, NaN", "read, or an error names the line"),
    # checkpoints
    28: Fault("a checkpoint of other modalities", "an error shows both lists"),
    29: Fault("of another architecture or version", "an error names the first difference"),
    30: Fault("truncated", "an error names the last one in order"),
    31: Fault("one flipped bit", "an error, by its checksum"),
    32: Fault("a hostile pickle", "nothing is ever unpickled"),
    33: Fault("an empty or absent file", "an error names it"),
    # training
    34: Fault("kill -9 at any moment", "the last checkpoint is whole; same bits at the end"),
    35: Fault("SIGTERM, Ctrl-C", "a checkpoint after the step; exit codes 143, 130"),
    36: Fault("a stop and a resume, anywhere", "bit-identical weights"),
    37: Fault("a full disk", "an error; what was saved is as it was"),
    38: Fault("a killed DataLoader process", "an error names what was loading; no hang"),
    39: Fault("NaN, infinity, overflow in a step", "skipped; too many end it and keep the batch"),
    40: Fault("a device out of memory", "training ends with advice; inference halves its batch"),
    # environment
    41: Fault("an output folder that is read-only", "an error before the first step"),
    42: Fault("two runs in one folder", "an error names the process that is there"),
    43: Fault("a GPU that is not there", "an error, unless any device will do"),
    44: Fault("a misspelt setting", "an error names the nearest"),
    45: Fault("metric weights that are not there", "not available, never a made-up number"),
    # the library itself
    46: Fault("missing slots that hold 7, infinity, NaN", "no bit of any result changes"),
    47: Fault("a row with nothing observed", "the prior, and a divergence of 0"),
    48: Fault("a batch of no row, or one", "results of that shape"),
    49: Fault("masks that do not fit", "an error names the argument and shows both shapes"),
    50: Fault("log scales of 30 and -30", "finite and right, against float64"),
    51: Fault("NaN in what was observed", "an error names modality and rows"),
    52: Fault("modality names that look alike", "no collision"),
    53: Fault("no compiler, damaged or contended cache", "rebuilt, or PyTorch, said once"),
    54: Fault("more experts than kernels are compiled for", "right all the same"),
    55: Fault("pickles in what is loaded", "refused"),
    # hostile or damaged images
    56: Fault("one flipped bit in compressed voxels (MHA, NRRD)", "an error, by a checksum"),
    57: Fault("a DICOM slice with too few voxels", "an error, never zeros or other memory"),
    58: Fault("a header that asks for what is not there", "its case fails by name; others go on"),
    59: Fault("a detached header that leaves the data set", "refused; a pipe does not hang"),
    # text for people
    60: Fault("markup in any field that the report reads", "escaped"),
    61: Fault("markup in what a model card says", "escaped; no heading, no table is made"),
    62: Fault("ids and modality names that no file should have", "refused with the reason"),
    63: Fault("formulas in cells of a CSV file", "written as text"),
    64: Fault("a terminal that is ASCII, full or closed", "the exit code is that of the work"),
    # models and checkpoints
    65: Fault("a calibration without a single step that helps", "an error, or said in the model"),
    66: Fault("hand-edited files whose checksums agree", "an error names the file"),
    67: Fault("an empty manifest", "an error: the checkpoint is incomplete"),
    68: Fault("a checkpoint of an older format", "migrated, or an error with its format"),
    69: Fault("NaN or reserved keys in a description", "NaN resumes; the keys are an error"),
    70: Fault("official weights that hold NaN", "an error names the first"),
    # training runs
    71: Fault("memory of the machine that runs out", "exit code 5 with advice"),
    72: Fault("a file system without locks", "said; it is not in use by anybody"),
    73: Fault("loader processes that outlive a killed run", "the folder is free at once"),
    74: Fault("a lock that is a link", "not followed"),
    75: Fault("a damaged log", "the run resumes"),
    76: Fault("files that killed processes left", "removed; the work is done again"),
    77: Fault("a last checkpoint that is a link", "the run resumes; the link alone is removed"),
    78: Fault("a disk that fills up in a subcommand", "an error names the file and the space"),
    79: Fault("more processes than batches", "an error says both numbers"),
    80: Fault("a resume with another number of processes", "the run resumes, and says so"),
    81: Fault("many samples and targets of a large scan", "at most three volumes are held"),
}


class Ended(NamedTuple):
    """A test of a fault that has ended."""

    outcome: str
    """``passed``, ``skipped`` or ``failed``."""
    simulated: bool
    """Whether something took the place of the system."""


class Collector:
    """Runs the tests of some faults, and remembers how they ended.

    Arguments:
        wanted: The numbers of the faults; all if there are none.
    """

    def __init__(self, wanted: Sequence[int]) -> None:
        self.wanted = set(wanted) or set(FAULTS)
        self.faults: dict[str, dict[int, bool]] = {}
        """The faults that each test injects, and whether they are simulated."""
        self.outcomes: dict[str, str] = {}

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Keeps the tests of these faults."""
        for item in items:
            self.faults[item.nodeid] = {
                n: simulated for n, simulated in _injected(item).items() if n in self.wanted
            }
        dropped = [item for item in items if not self.faults[item.nodeid]]
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if self.faults[item.nodeid]]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Notes how a test ended; set-up and what follows it count as well."""
        if report.failed:
            self.outcomes[report.nodeid] = "failed"
        elif report.when == "call" or report.skipped:
            self.outcomes.setdefault(report.nodeid, report.outcome)

    def ended(self) -> dict[int, list[Ended]]:
        """Returns how the tests of each fault ended."""
        found: dict[int, list[Ended]] = {n: [] for n in sorted(self.wanted)}
        for test, faults in self.faults.items():
            for number, simulated in faults.items():
                # a test that was collected but has not ended is no success
                found[number].append(Ended(self.outcomes.get(test, "failed"), simulated))
        return found


def _injected(item: pytest.Item) -> dict[int, bool]:
    """Returns the faults that a test injects, and whether they are simulated."""
    marks = list(item.iter_markers("fault"))
    if unknown := {mark.args[0] for mark in marks} - set(FAULTS):
        raise pytest.UsageError(f"{item.nodeid} injects {unknown}, which is no fault.")
    patches = (
        isinstance(item, pytest.Function)
        and "monkeypatch" in inspect.signature(item.function).parameters
    )
    if patches and not all("simulated" in mark.kwargs for mark in marks):
        raise pytest.UsageError(
            f"{item.nodeid} takes 'monkeypatch', so that its marker 'fault' should say whether "
            "the fault is simulated."
        )
    return {mark.args[0]: mark.kwargs.get("simulated", False) for mark in marks}


def result(tests: Sequence[Ended]) -> str:
    """Returns the result of a fault from how its tests ended."""
    outcomes = {test.outcome for test in tests}
    if not outcomes:
        return "not covered"
    if "failed" in outcomes:
        return "FAILED"
    return "passed" if "passed" in outcomes else "skipped"


def conditions(tests: Sequence[Ended]) -> str:
    """Returns whether tests that passed had real conditions, simulated ones, or both."""
    passed = {test.simulated for test in tests if test.outcome == "passed"}
    if len(passed) == 2:
        return "both"
    return "".join("simulated" if simulated else "real" for simulated in passed)


def rows(found: Mapping[int, Sequence[Ended]]) -> list[tuple[str, ...]]:
    """Returns the table of faults, its head first."""
    head = ("fault", "injected", "what should happen", "conditions", "tests", "result")
    return [head] + [
        (str(n), *FAULTS[n], conditions(tests), str(len(tests)), result(tests))
        for n, tests in found.items()
    ]


def total(found: Mapping[int, Sequence[Ended]]) -> str:
    """Returns how many faults were passed, and what became of the others."""
    results = [result(tests) for tests in found.values()]
    kinds = {kind: results.count(kind) for kind in ("FAILED", "skipped", "not covered")}
    others = "".join(f", {number} {kind}" for kind, number in kinds.items() if number)
    simulated = sum(conditions(tests) == "simulated" for tests in found.values())
    alone = f"; {simulated} of them under simulated conditions alone" if simulated else ""
    return f"{results.count('passed')} of {len(results)} passed{others}{alone}"


def table(found: Mapping[int, Sequence[Ended]]) -> str:
    """Returns the table of faults for a terminal, and the total."""
    lines = rows(found)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    return "\n".join([*text, "", total(found)])


def markdown(found: Mapping[int, Sequence[Ended]], about: Mapping[str, Any]) -> str:
    """Returns the page of the results.

    Arguments:
        found: How the tests of each fault ended.
        about: What `benchmarks._results.facts` says.
    """
    head, *lines = [f"| {' | '.join(line)} |" for line in rows(found)]
    return (
        "# Faults\n\n"
        f"`{about['command']}`, commit {about['commit']}, {about['date']}, "
        f"{about['machine']['cpu']}: {total(found)}.\n\n"
        "Conditions are real where the system itself refused or damaged something, and simulated "
        "where the test put something in its place.\n\n"
        + "\n".join([head, "|---:|---|---|---|---:|---|", *lines])
    )


def main() -> None:
    """Runs the tests and prints the table; exits with 1 if one has failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("faults", nargs="*", type=int, help="their numbers; all by default")
    parser.add_argument("--write", action="store_true", help="write the table of all faults")
    options = parser.parse_args()
    if unknown := set(options.faults) - set(FAULTS):
        parser.error(f"faults are numbered 1 to {max(FAULTS)}, but some are {sorted(unknown)}")
    if options.write and options.faults:
        parser.error("--write is for the table of all faults")
    collector = Collector(options.faults)
    started = time.monotonic()
    arguments = ["-q", "-m", "fault", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    code = pytest.main([*arguments, str(ROOT / "tests")], plugins=[collector])
    if code == pytest.ExitCode.USAGE_ERROR:
        sys.exit(2)
    found = collector.ended()
    print(f"\n{table(found)}")
    if options.write:
        about = facts("make reliability", "full", [])
        results = {
            n: {"result": result(tests), "conditions": conditions(tests), "tests": len(tests)}
            for n, tests in found.items()
        }
        about["seconds"] = round(time.monotonic() - started)
        write("reliability", {**about, "faults": results}, markdown(found, about))
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        sys.exit(1)


if __name__ == "__main__":
    main()
