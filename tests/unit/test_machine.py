import os

import pytest

from detrkit.machine import memory_limit, usable_cpus

BOUND = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, BOUND),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, BOUND),
        ({"cpu.max": "nonsense"}, BOUND),
        ({"cpu.max": "99900000 100000"}, BOUND),
        ({}, BOUND),
        # a service's own group, and the slice around it, as systemd sets CPUQuota
        ({"own": "0::/system.slice/a.service\n", "system.slice/a.service/cpu.max": "90000 100000"}, 1),
        ({"own": "0::/system.slice/a.service\n", "system.slice/cpu.max": "90000 100000"}, 1),
        ({"own": "0::/other.slice\n", "system.slice/cpu.max": "90000 100000"}, BOUND),
        (
            {
                "own": "4:cpu,cpuacct:/docker/7\n1:memory:/docker/8\nnonsense",
                "cpu/docker/7/cpu.cfs_quota_us": "100000",
                "cpu/docker/7/cpu.cfs_period_us": "100000",
            },
            1,
        ),
        ({"own": "0::/../../etc\n"}, BOUND),
    ],
)
def test_the_quota_of_a_container_counts(files, expected, tmp_path):
    write(tmp_path, files)
    assert usable_cpus(tmp_path, tmp_path / "own") == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"memory.max": "1073741824\n"}, 1 << 30),
        ({"memory.max": "max\n"}, None),
        ({"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ({"memory/memory.limit_in_bytes": "2097152\n", "memory.max": "4194304"}, 1 << 21),
        ({"own": "0::/a/b\n", "a/b/memory.max": "max", "a/memory.max": "4096"}, 4096),
        ({}, None),
    ],
)
def test_the_least_limit_of_memory_counts(files, expected, tmp_path):
    write(tmp_path, files)
    assert memory_limit(tmp_path, tmp_path / "own") == expected


def write(place, files):
    for name, content in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(content)
