"""What is known of a process that one waits for."""

import os
import subprocess
import sys

from nmoe import dist


def test_process_counts_as_gone_when_it_is_a_zombie() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, nobody has reaped it
    assert os.path.exists(f"/proc/{child.pid}/stat")
    assert dist.start_time(child.pid) == -1
    child.wait()
    assert dist.start_time(child.pid) == -1


def test_process_is_known_by_its_start_time_when_it_lives() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        mine, theirs = dist.start_time(os.getpid()), dist.start_time(child.pid)
        assert 0 < mine <= theirs
