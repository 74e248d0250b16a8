"""Compiles what kernel launchers launch, for GPUs that are not here, and reads what came out.

Launches run through Triton's own launch path, which derives types and alignment from the arguments,
but end after compilation. Arguments are meta tensors: shapes without memory.
"""

import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
# of rows: blocks of bf16 behind plain pointers
ROW_ACCESS = r"tt\.{kind}\b[^\n]*tensor<[0-9x]+x!tt\.ptr<bf16>>"
TENSOR_CORES = {90: "wgmma.mma_async", 100: "tcgen05.mma"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One kernel compiled for one target; counts are of PTX instructions."""

    case: str
    kernel: str  # module.function
    target: int  # 90 or 100
    registers: int
    stack: int  # bytes a thread: spills, and arrays that are indexed
    shared: int  # bytes a program
    warps: int
    has_dot: bool
    reads_rows: bool
    writes_rows: bool
    tensor_core: int
    wide_loads: int  # 16 bytes a thread, to registers or to shared memory
    wide_stores: int
    narrow: int  # of 2 bytes; copies of less than 16 to shared memory, where no table is copied
    bulk: int  # copies by the tensor memory accelerator
    loose_releases: int  # stores of this program come before it, and no barrier between

    @property
    def faults(self) -> list[str]:
        """What is wrong with it, in words."""
        found = {
            f"{self.stack} bytes of stack: registers spill": self.stack > 0,
            f"tl.dot without {TENSOR_CORES[self.target]}": self.has_dot and not self.tensor_core,
            "rows are read, and not 16 bytes wide": self.reads_rows and not self.wide_loads,
            "rows are written, and not 16 bytes wide": self.writes_rows and not self.wide_stores,
            f"{self.narrow} narrow accesses to global memory": self.narrow > 0,
            "a release with no barrier after the stores before it": self.loose_releases > 0,
        }
        label = f"{self.kernel} in case {self.case!r} for sm_{self.target}a"
        return [f"{label}: {fault}" for fault, is_there in found.items() if is_there]


class Driver:
    """A GPU that compiles and never runs."""

    def __init__(self, target: int) -> None:
        self._target = GPUTarget("cuda", target, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")

    def map_python_to_cpp_type(self, name: str) -> str:
        return name

    class launcher_cls:  # noqa: N801 - Triton's name
        def __init__(self, *_: Any) -> None:
            pass


def compile_cases(cases: Mapping[str, Callable[[], None]], *, target: int) -> list[Report]:
    """Run every case, and report each kernel that its launchers compile for `target`."""
    driver.set_active(Driver(target))
    reports: list[Report] = []
    seen: set[str] = set()
    case = ""
    stock = JITFunction.run

    def run(self: JITFunction, *args: Any, grid: Any, warmup: bool = False, **options: Any) -> None:
        compiled = stock(self, *args, grid=grid, warmup=True, **options)
        if compiled is None or compiled.hash in seen:  # compiled by a case before
            return
        seen.add(compiled.hash)
        name = f"{self.fn.__module__.rpartition('.')[2]}.{self.fn.__name__}"
        reports.append(inspect(compiled, case=case, kernel=name, target=target))

    JITFunction.run = run
    try:
        for case, launch in cases.items():  # noqa: B007 - `run` reads it
            launch()
    finally:
        JITFunction.run = stock
    return reports


def inspect(compiled: Any, *, case: str, kernel: str, target: int) -> Report:
    """Read a compiled kernel."""
    ptx, ttir, ttgir = (compiled.asm[stage] for stage in ("ptx", "ttir", "ttgir"))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [CUOBJDUMP, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    resources = {name: int(value) for name, value in re.findall(r"([A-Z]+):(\d+)", usage)}

    def count(pattern: str) -> int:
        return len(re.findall(pattern, ptx))

    copies = count(r"cp\.async\.c[ag]\.shared\.global")
    wide_copies = count(r"cp\.async\.c[ag]\.shared\.global[^;]*, 0x10[,;]")
    tables = re.search(r"async_copy_global_to_local\b[^\n]*!tt\.ptr<i32>", ttgir)
    return Report(
        case=case,
        kernel=kernel,
        target=target,
        registers=resources["REG"],
        stack=resources["STACK"] + resources["LOCAL"],
        shared=compiled.metadata.shared,
        warps=compiled.metadata.num_warps,
        has_dot=bool(re.search(r"\btt\.dot", ttir)),
        reads_rows=bool(re.search(ROW_ACCESS.format(kind="load"), ttir)),
        writes_rows=bool(re.search(ROW_ACCESS.format(kind="store"), ttir)),
        tensor_core=count(re.escape(TENSOR_CORES[target])),
        wide_loads=wide_copies + count(r"ld\.[\w.:]*global[\w.:]*\.(v4\.[bf]32|v2\.[bf]64)"),
        wide_stores=count(r"st\.[\w.:]*global[\w.:]*\.(v4\.[bf]32|v2\.[bf]64)"),
        narrow=(0 if tables else copies - wide_copies)
        + count(r"\b(ld|st)\.[\w.:]*global[\w.:]*\.[bu]16\b"),
        bulk=count(r"cp\.async\.bulk\.tensor"),
        loose_releases=loose_releases(ptx),
    )


def loose_releases(ptx: str) -> int:
    """Releases that thread 0 may do before other threads of the program have done their stores.

    Triton 3.6 and 3.7 put no barrier there by themselves: `tl.debug_barrier` must be written.
    """
    loose, has_stored = 0, False
    for line in ptx.splitlines():
        if re.search(r"\.release\.|\.acq_rel\.", line):
            loose += has_stored
        elif re.search(r"\bst\.[\w.:]*global", line):
            has_stored = True
        elif re.search(r"\bbar(rier)?\.[\w.]*sync", line):
            has_stored = False
    return loose
