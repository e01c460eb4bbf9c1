"""Faults and the behaviour of the library: a table, and how many faults it survives.

Each fault is injected by tests, which say its number with the marker ``fault``; they are run, and
a fault is passed if all of its tests are. Faults that no test injects are listed as not covered.
Tests that a machine cannot run (a GPU, rights that the superuser has) are counted as skipped.

    python -m benchmarks.reliability
    python -m benchmarks.reliability 31 34
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

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
    3: Fault("a truncated .nii.gz", "an error, never zeros in place of what is gone"),
    4: Fault("one flipped byte in a .nii.gz", "an error, by its checksum"),
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
}


class Collector:
    """Runs the tests of some faults, and remembers how they ended.

    Arguments:
        wanted: The numbers of the faults; all if there are none.
    """

    def __init__(self, wanted: Sequence[int]) -> None:
        self.wanted = set(wanted) or set(FAULTS)
        self.numbers: dict[str, set[int]] = {}
        self.outcomes: dict[str, str] = {}

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Keeps the tests of these faults."""
        for item in items:
            numbers = {mark.args[0] for mark in item.iter_markers("fault")}
            if unknown := numbers - set(FAULTS):
                raise pytest.UsageError(f"{item.nodeid} injects {unknown}, which is no fault.")
            self.numbers[item.nodeid] = numbers & self.wanted
        dropped = [item for item in items if not self.numbers[item.nodeid]]
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if self.numbers[item.nodeid]]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Notes how a test ended; set-up and what follows it count as well."""
        if report.failed:
            self.outcomes[report.nodeid] = "failed"
        elif report.when == "call" or report.skipped:
            self.outcomes.setdefault(report.nodeid, report.outcome)

    def counts(self) -> dict[int, dict[str, int]]:
        """Returns the number of tests of each fault by how they ended."""
        found: dict[int, dict[str, int]] = {n: defaultdict(int) for n in sorted(self.wanted)}
        for test, numbers in self.numbers.items():
            for number in numbers:
                # a test that was collected but has not ended is no success
                found[number][self.outcomes.get(test, "failed")] += 1
        return found


def result(counts: Mapping[str, int]) -> str:
    """Returns the result of a fault from the number of its tests by how they ended."""
    if not counts:
        return "not covered"
    if counts.get("failed", 0):
        return "FAILED"
    return "passed" if counts.get("passed", 0) else "skipped"


def table(counts: Mapping[int, Mapping[str, int]]) -> str:
    """Returns the table of faults, and the total."""
    rows = [("fault", "injected", "what should happen", "tests", "result")]
    rows += [
        (str(n), *FAULTS[n], str(sum(found.values())), result(found))
        for n, found in counts.items()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    results = [result(found) for found in counts.values()]
    kinds = {kind: results.count(kind) for kind in ("FAILED", "skipped", "not covered")}
    others = "".join(f", {number} {kind}" for kind, number in kinds.items() if number)
    return "\n".join([*lines, "", f"{results.count('passed')} of {len(results)} passed{others}"])


def main() -> None:
    """Runs the tests and prints the table; exits with 1 if one has failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("faults", nargs="*", type=int, help="their numbers; all by default")
    wanted = parser.parse_args().faults
    if unknown := set(wanted) - set(FAULTS):
        parser.error(f"faults are numbered 1 to {max(FAULTS)}, but some are {sorted(unknown)}")
    collector = Collector(wanted)
    options = ["-q", "-m", "fault", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    code = pytest.main([*options, str(ROOT / "tests")], plugins=[collector])
    print(f"\n{table(collector.counts())}")
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        sys.exit(1)


if __name__ == "__main__":
    main()
