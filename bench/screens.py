"""What the screens cost: CPU and memory under load and at rest, first paint, from key to screen.

`python -m bench.screens [--seconds 60]` runs the program in a pseudo-terminal of 120 x 40 cells on
a run that a thread writes: 200 events a second, of all kinds a trainer and a supervisor write.
Seconds of CPU stand beside those of the clock: other processes make only the latter longer.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from nmoe import events as ev
from nmoe.paths import DataRoot
from tests.tui import races
from tests.tui.races import Race
from tests.tui.screen import held
from tests.tui.terminal import TUI, Terminal

SIZE = (120, 40)
RATE = 200
TICK_S = 0.05
# What any Textual app costs on this machine, whatever it shows.
EMPTY = """
from textual.app import App
from textual.widgets import Static

class Empty(App):
    def compose(self):
        yield Static("this machine")

Empty().run()
"""
SCREENS = {
    "2": b"layers",
    "3": b"throughput",
    "4": b"CORE is scored",
    "8": b"events",
    "1": b"numbers",
}


def cpu_s(pid: int) -> float:
    """Seconds of CPU of a process, all its threads, as the kernel counts them."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mb(pid: int) -> float:
    """Resident memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class Load(threading.Thread):
    """Writes RATE events a second into a run until it is told to stop."""

    def __init__(self, race: Race, start: int) -> None:
        super().__init__(daemon=True)
        self._race, self._stop_it = race, threading.Event()
        self._events = self._all(start)
        self.written = 0

    def _all(self, start: int) -> Iterator[tuple[str, ev.Event]]:
        """Step, router and validation events, and samples of eight GPUs in between."""
        sample = ev.GpuEvent(index=0, util=97, power_w=951.0, power_limit_w=1000.0, throttle=0,
                             temperature_c=68, sm_mhz=1900, memory_used_bytes=1 << 37)  # fmt: skip
        for event in self._race.steps(10_000_000, start=start):
            yield "train", event
            if isinstance(event, ev.RouterEvent) and event.step % 40 == 0:
                for index in range(8):
                    yield "gpus", replace(sample, index=index, sm_mhz=1900 - event.step % 50)

    def run(self) -> None:
        due = time.monotonic()
        while not self._stop_it.is_set():
            for _ in range(round(RATE * TICK_S)):
                kind, event = next(self._events)
                (self._race.gpus if kind == "gpus" else self._race.train)(event, seconds=0.005)
                self.written += 1
            due += TICK_S
            time.sleep(max(0.0, due - time.monotonic()))

    def stop(self) -> None:
        self._stop_it.set()
        self.join()


def watch(terminal: Terminal, seconds: float) -> tuple[float, list[float]]:
    """CPU as a fraction of one core while output is read, and memory at each fifth of the time."""
    pid, start_s, begin = terminal.child.pid, time.monotonic(), cpu_s(terminal.child.pid)
    memory: list[float] = []
    for part in range(1, 6):
        while time.monotonic() - start_s < seconds * part / 5:
            terminal.read(0.1)
            terminal.output = terminal.output[-4096:]
        memory.append(memory_mb(pid))
    return (cpu_s(pid) - begin) / (time.monotonic() - start_s), memory


def latencies(terminal: Terminal, rounds: int) -> list[float]:
    """Milliseconds from a digit to words of its screen."""
    found: list[float] = []
    for _ in range(rounds):
        for key, words in SCREENS.items():
            watch(terminal, 0.5)
            terminal.output = b""
            begin = time.monotonic()
            os.write(terminal.master, key.encode())
            terminal.read_until(words, poll_s=0.005)
            found.append((time.monotonic() - begin) * 1000)
    return found


def first_paint(root: DataRoot, program: Sequence[str], wanted: bytes) -> tuple[float, float]:
    """Seconds, and those of CPU, from the start of a program to words on its screen."""
    begin = time.monotonic()
    terminal = Terminal(program=program, size=SIZE, DATA_DIR=str(root.path))
    terminal.read_until(wanted, poll_s=0.005)
    took = time.monotonic() - begin, cpu_s(terminal.child.pid)
    terminal.close()
    return took


def measure_first_paint(root: DataRoot) -> None:
    """The start screen beside an empty app, by turns."""
    programs = {"n": TUI, "an empty Textual app": (sys.executable, "-c", EMPTY)}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for _ in range(5):
        for name, program in programs.items():
            taken[name].append(first_paint(root, program, b"this machine"))
    for name, times in taken.items():
        print(f"first paint of {name}: {median_of(times)}")


def median_of(times: Sequence[tuple[float, float]]) -> str:
    """The medians of seconds and of those of CPU, as words."""
    wall, cpu = (statistics.median(each) for each in zip(*times, strict=True))
    return f"{wall:.2f} s, {cpu:.2f} s of CPU"


def main() -> None:
    """Measure all of it, one figure a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    seconds: float = parser.parse_args().seconds
    folder = Path(tempfile.mkdtemp(prefix="screens-"))
    root = DataRoot(path=folder, reason="bench")
    try:
        measure_first_paint(root)
        long = races.healthy(root, "super-20260101-000000-long", stop=100_000)
        files = long.folder.root.glob("*.jsonl")
        events = sum(len(path.read_bytes().splitlines()) for path in files)
        for what, words in (("first paint", b"best val"), ("all of it", b"100,000")):
            program = (*TUI, "attach", long.run_id)
            times = [first_paint(root, program, words) for _ in range(3)]
            print(f"{what} of a run of {events:,} events: {median_of(times)}")
        idle = Terminal("attach", long.run_id, size=SIZE, DATA_DIR=str(folder))
        idle.read_until(b"100,000")
        watch(idle, 3)
        print(f"idle, a run that is over: {watch(idle, seconds / 3)[0]:.2%} of a core")
        idle.close()
        measure_load(root, seconds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure_load(root: DataRoot, seconds: float) -> None:
    """CPU and memory on each screen of the run under load, then keys under load."""
    race = races.healthy(root, "super-20260101-000000-load", stop=2000, time=time.time())
    print(f"load average {os.getloadavg()[0]:.1f}")
    with held(race.folder):
        terminal = Terminal("attach", race.run_id, size=SIZE, DATA_DIR=str(root.path))
        terminal.read_until(b"numbers")
        load = Load(race, 2000)
        load.start()
        watch(terminal, 3)
        for key, words in [("1", b""), *SCREENS.items()]:
            os.write(terminal.master, key.encode())
            terminal.read_until(words)
            long = key == "1" and not words
            cpu, memory = watch(terminal, seconds if long else seconds / 6)
            name = "run" if key == "1" else words.decode()
            told = ", ".join(f"{each:.0f}" for each in memory)
            print(f"{RATE} events/s, screen {key} ({name}): {cpu:.1%} of a core; MB: {told}")
        found = latencies(terminal, 6)
        print(
            f"key to screen under load: median {statistics.median(found):.0f} ms,"
            f" slowest {max(found):.0f} ms of {len(found)}"
        )
        load.stop()
        print(f"{load.written:,} events were written")
        terminal.close()


if __name__ == "__main__":
    main()
