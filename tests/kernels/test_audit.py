"""What NVRTC makes of the kernels: no GPU is needed to read it."""

import os
from pathlib import Path

import pytest
import torch

from benchmarks import audit_poe
from mmpoe.kernels import BuildError, Specialisation, cuda_binary, jit

exhaustive = pytest.mark.skipif(
    not os.environ.get("MMPOE_EXHAUSTIVE"), reason="takes minutes: make test-kernels"
)


def has_tools():
    try:
        jit.nvrtc()
    except BuildError:
        return False
    return audit_poe.tool() is not None


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has_tools(), reason="needs NVRTC and cuobjdump"),
]

RESULTS = Path(audit_poe.__file__).parent / "results" / "audit.txt"
# on compute capability 9.0, per element, 4 experts
INSTRUCTIONS = {
    ("forward", torch.float32): 255,
    ("backward", torch.float32): 320,
    ("forward", torch.bfloat16): 270,
    ("backward", torch.bfloat16): 330,
}


def check(special, architecture):
    report = audit_poe.audit(special, architecture)
    assert report.spills == 0
    assert report.stack == 0
    assert report.blocks >= special.blocks

    # every tensor by one instruction per thread, and once more where an expert is far or alone;
    # the scales of far experts twice more
    experts = special.experts
    packet = 8 * special.width * special.dtype.itemsize
    clamped = 2 * (experts + 1) if special.clamp else 0
    loads = {"forward": 5 * experts + 5, "backward": 6 * experts + 6 + clamped}
    # the seed, offsets and the order of pairs: 64 bits; for older architectures the compiler
    # writes divergences at two places, and each reads the order
    places = {"forward": 6 if architecture < 100 else 5, "backward": 4}
    stores = {"forward": 3, "backward": 2 * experts + 2}
    if packet > 32:
        extra = places[special.direction] if packet == 64 else 0
        assert report.loads[packet] == loads[special.direction] + extra
        gamma = special.common_noise and special.direction == "backward" and packet == 128
        assert report.stores[packet] == stores[special.direction] + gamma
    return report


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_four_experts(dtype, direction):
    report = check(Specialisation(direction, dtype, experts=4), 90)
    assert report.blocks >= 3
    assert report.instructions <= INSTRUCTIONS[direction, dtype]

    recorded = RESULTS.read_text()  # by make audit-poe
    if recorded.startswith(audit_poe.version() + ";"):
        assert audit_poe.line(report) in recorded.splitlines()


@exhaustive
@pytest.mark.parametrize("architecture", audit_poe.ARCHITECTURES)
@pytest.mark.parametrize("special", list(audit_poe.grid()), ids=lambda s: "-".join(map(str, s)))
def test_the_grid(special, architecture):
    check(special, architecture)


def test_nvrtc_says_nothing(caplog):
    special = Specialisation("forward", torch.float16, 3, clamp=True, common_noise=True)
    binary = cuda_binary(special, 80)
    assert binary[:4] == b"\x7fELF"
    assert "NVRTC says" not in caplog.text


def test_an_architecture_from_the_future_gets_ptx():
    special = Specialisation("forward", torch.float32, experts=1)
    text = cuda_binary(special, 999)
    assert b".entry gpoe_forward" in text
    with pytest.raises(BuildError, match="does not compile for compute capability 10"):
        cuda_binary(special, 10)


def test_errors_of_nvrtc_are_said():
    special = Specialisation("forward", torch.float32, experts=1)
    with pytest.raises(BuildError, match=r"NVRTC failed: .*no_such_type"):
        cuda_binary(special, 90, ["-Dfloat=no_such_type"])
