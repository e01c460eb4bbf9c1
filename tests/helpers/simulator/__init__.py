"""A GPU that is not there: a driver that runs kernels by simulated threads."""

import ctypes
import hashlib
import subprocess
import tempfile
from pathlib import Path

from mmpoe.kernels import Specialisation, _cuda, jit

HERE = Path(__file__).parent
FAILURES = {
    1: "a thread waits for one that does not come",
    2: "a packet is not aligned",
    3: "shared memory is written beyond its end",
    4: "a shuffle leaves lanes out",
}


class SimulationError(Exception):
    """A kernel did what a GPU would not forgive."""


class SimulatedDriver(_cuda.Driver):
    """Runs the kernels on tensors in the memory of the CPU.

    Arguments:
        order: The order in which the threads of a block take turns.
        sources: The sources, for tests of broken ones.
        errors: The direction in which special-function units err, by as much as they may.
    """

    def __init__(self, order=0, sources=None, errors="none"):
        self.order, self.sources = order, sources
        self.errors = ["none", "up", "down", "either"].index(errors)
        self.launched = []

    def sources_of(self, special):
        return self.sources or jit.sources(special.program)

    def architecture(self, device):
        return 90

    def processors(self, device):
        return 2

    def is_capturing(self):
        return False

    def load(self, binary, name, device):
        raise AssertionError("a simulation loads no binary")

    def launch(self, function, blocks, threads, shared, arguments, device):
        self.launched.append((blocks, threads, shared, arguments))
        code = function(arguments, blocks, threads, shared, self.order, self.errors)
        if code:
            raise SimulationError(FAILURES[code])


class SimulatedLauncher(_cuda.Launcher):
    """The launcher of the CUDA backend on a simulated driver: it compiles with g++ instead.

    Arguments:
        order: The order in which the threads of a block take turns.
        sources: The sources, for tests of broken ones.
        threads: Threads of a block, to have more or fewer than it would choose.
        exact: Whether to compile without what is not used; else one kernel does for more.
        errors: The direction in which special-function units err, by as much as they may.
    """

    def __init__(self, order=0, sources=None, threads=None, exact=False, errors="none"):
        super().__init__(SimulatedDriver(order, sources, errors))
        self.threads, self.exact = threads, exact

    def function(self, special, device=None):
        if not self.exact and isinstance(special, Specialisation):
            special = special._replace(clamp=True, common_noise=True)
        if special not in self._functions:
            self._functions[special] = compile_kernel(special, self.driver.sources_of(special))
        return self._functions[special]

    def _threads(self, size, width):
        return self.threads or super()._threads(size, width)


def compile_kernel(special: jit.Kernel, sources: dict[str, str]):
    files = {p.name: p.read_text() for p in (HERE / "threads.h", HERE / "kernel.cpp")} | sources
    options = ["-std=c++17", "-O1", "-ffp-contract=fast", "-shared", "-fPIC", *special.defines]
    identity = "\0".join([*files.values(), *options])

    def compile():
        with tempfile.TemporaryDirectory() as folder:
            for name, text in files.items():
                (Path(folder) / name).write_text(text)
            target = Path(folder) / "kernel.so"
            command = [*jit.compiler(), *options, str(Path(folder) / "kernel.cpp")]
            subprocess.run([*command, "-o", str(target)], check=True)
            return target.read_bytes()

    name = f"gpoe-simulated-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
    content = jit.cached(name, ".so", identity, compile)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.so"
        path.write_bytes(content)
        library = ctypes.CDLL(str(path))
    library.simulate.argtypes = [ctypes.c_char_p, *[ctypes.c_uint] * 5]
    return library.simulate
