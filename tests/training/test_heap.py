"""What a step frees stays with the process."""

import subprocess
import sys

TOUCHED = """
import resource, sys
from clipreel.training.heap import keep_freed_memory
import torch
if sys.argv[1] == "keep":
    assert keep_freed_memory()
torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(60):
    torch.ones(2**23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    run = subprocess.run([sys.executable, "-c", TOUCHED, how], capture_output=True, text=True, check=True)
    return int(run.stdout)


def test_pages_are_not_asked_for_again() -> None:
    """Sixty times 32 MB, one after the other: without it the system hands out all 8,192 pages each time."""
    assert faults("plain") > 60 * 8000
    assert faults("keep") < 15 * 8000  # a few blocks, until the holes of aligned ones fit
