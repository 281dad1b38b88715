"""What a step frees stays with the process: the next one finds its pages there."""

import platform
import subprocess
import sys

import pytest

STEPS = """
import resource
import torch
from reprise.runtime.allocator import keep_freed_memory
keep_freed_memory()
def step():
    parts = [torch.ones(4 << 18) for _ in range(12)]  # 12 x 4 MiB
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**environment):
    finished = subprocess.run(
        [sys.executable, "-c", STEPS], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    return int(finished.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's")
def test_freed_memory_is_used_again_without_page_faults_unless_the_user_has_tuned_the_allocator():
    assert faults() < 100
    assert faults(MALLOC_TRIM_THRESHOLD_="131072") > 1000
