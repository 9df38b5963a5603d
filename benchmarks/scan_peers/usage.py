"""What a process has used, measured alike for every side."""

import resource
from pathlib import Path


def cpu() -> float:
    """User and system seconds of this process so far, all threads together."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peak_mb() -> float:
    """Largest resident memory of this process so far, MiB.

    Not ``ru_maxrss``: that begins with what the parent had when it forked.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("this system does not tell a process its peak memory")
