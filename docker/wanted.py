"""Print the lines of a lock that have to be installed here: all but what is there already and has to stay."""

import re
import sys
from importlib import metadata
from pathlib import Path

# What the compiled packages of an image were built with, and the oldest versions that setup.py takes.
KEPT_FROM = {"torch": (2, 11), "triton": (), "numpy": (2,), "setuptools": (77,)}


def installed() -> dict[str, str]:
    """Name → version of those that are installed."""
    found = {}
    for name in KEPT_FROM:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def kept(found: dict[str, str]) -> dict[str, str]:
    """Name → version of what stays: whatever is new enough, Triton only with the torch that it came with."""
    release = {name: tuple(map(int, re.findall(r"\d+", version)[:2])) for name, version in found.items()}
    stays = {name: version for name, version in found.items() if release[name] >= KEPT_FROM[name]}
    if "torch" not in stays:
        stays.pop("triton", None)
    return stays


def wanted(lock: str, stays: dict[str, str]) -> str:
    """The lock's text without the lines of what stays."""
    return "\n".join(line for line in lock.splitlines() if re.split("[=; ]", line)[0] not in stays) + "\n"


if __name__ == "__main__":
    stays = kept(installed())
    print("kept as installed:", ", ".join(f"{n} {v}" for n, v in stays.items()) or "nothing", file=sys.stderr)
    print(wanted(Path(sys.argv[1]).read_text(), stays), end="")
