"""CPU time and peak memory of this process, measured in the same way for every side."""

import resource
from pathlib import Path


def cpu() -> float:
    """User and system seconds of this process so far, all threads together."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peak_mb() -> float:
    """Largest resident memory of this process so far, MiB.

    Not ``ru_maxrss``: it starts at the parent's memory at the fork.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("/proc/self/status has no VmHWM: peak memory is not available on this system")
