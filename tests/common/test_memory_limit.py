"""The memory that may be used is the machine's, or what its narrowest control group leaves."""

import os

import pytest

from fastarat.common import memory_limit

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("membership", "limits", "found"),
    [
        ("", {}, MACHINE),
        ("0::/job/step\n", {"job/memory.max": "4096", "job/step/memory.max": "max"}, 4096),
        ("0::/job/step\n", {"job/memory.max": "4096", "job/step/memory.max": "2048"}, 2048),
        ("0::/\n", {"memory.max": "8192"}, 8192),
        ("0::/../elsewhere\n", {"memory.max": "8192"}, 8192),
        ("5:cpu,memory:/docker/0123\n0::/\n", {"memory/memory.limit_in_bytes": "8192"}, 8192),
        ("4:memory:/a:b\n", {"memory/a:b/memory.limit_in_bytes": "1024"}, 1024),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": str(2**63 - 4096)}, MACHINE),
        ("3:cpuset:/a\n", {"a/memory.max": "1"}, MACHINE),
    ],
)
def test_the_narrowest_limit_counts(tmp_path, monkeypatch, membership, limits, found):
    (tmp_path / "membership").write_text(membership)
    for name, limit in limits.items():
        file = tmp_path / "groups" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{limit}\n")
    monkeypatch.setattr(memory_limit, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(memory_limit, "CGROUPS", tmp_path / "groups")
    assert memory_limit.usable_memory() == found
