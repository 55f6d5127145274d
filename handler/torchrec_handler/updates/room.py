"""Whether a live copy fits: into its file system, this machine's memory and this container's."""

import os
from collections.abc import Iterator
from pathlib import Path

from torchrec_handler.errors import OptionError

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
SHARED = ("tmpfs", "ramfs", "hugetlbfs")
UNIFIED = ("memory.max", "memory.current", "")
"""A control group's files: what it may have, what it has, and the prefix of names in its
`memory.stat`."""
LEGACY = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
"""The same of the first version."""


def check_room(place: Path, needed: int) -> None:
    """See that a copy of so many bytes fits.

    Raises:
        OptionError: there is less room, or less memory.
    """
    found = os.statvfs(place)
    room = {f"{place}": found.f_bavail * found.f_frsize}
    if _is_memory(place):
        room["memory"] = memory_left()
    for where, free in room.items():
        if free < needed:
            message = (
                f"torchrec.updates.place: the live copy of the tables takes {needed / 1e9:.2f} GB, "
                f"and {where} has {free / 1e9:.2f} GB left; name another folder, or leave out "
                "torchrec.updates.folder"
            )
            raise OptionError(message)


def memory_left(proc: Path = PROC, groups: Path = GROUPS) -> int:
    """Bytes that this process could have: of the machine, or of a control group that it is in.

    What is read of files counts, as the kernel drops it for whoever needs memory.
    """
    lines = (proc / "meminfo").read_text("ascii").splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return min(int(kilobytes) * 1024, *_left_of_groups(proc, groups), 2**63)


def _left_of_groups(proc: Path, groups: Path) -> Iterator[int]:
    path = proc / "self" / "cgroup"
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        _, controllers, name = line.split(":", 2)
        if not controllers:
            root, files = groups, UNIFIED
        elif "memory" in controllers.split(","):
            root, files = groups / "memory", LEGACY
        else:
            continue
        # In a container the names may be the machine's, and its own group the only one to be seen.
        own = root / name.lstrip("/")
        for folder in (own, *own.parents):
            if not folder.is_relative_to(root):
                break
            if (left := _left_of(folder, *files)) is not None:
                yield left


def _left_of(folder: Path, most: str, used: str, prefix: str) -> int | None:
    try:
        limit = (folder / most).read_text("ascii").strip()
        if limit == "max":
            return None
        usage = int((folder / used).read_text("ascii"))
        stat = (folder / "memory.stat").read_text("ascii").splitlines()
    except FileNotFoundError:
        return None
    counts = {name: int(value) for name, value in (line.split() for line in stat)}
    files = sum(counts.get(f"{prefix}{kind}_file", 0) for kind in ("active", "inactive"))
    return max(int(limit) - usage + files, 0)


def _is_memory(place: Path) -> bool:
    """Whether a folder's files are kept in memory alone."""
    mounts = [line.split() for line in (PROC / "mounts").read_text("utf-8").splitlines()]
    real = place.resolve()
    owners = [(mount[1], mount[2]) for mount in mounts if real.is_relative_to(mount[1])]
    return max(owners, key=lambda owner: len(owner[0]), default=("", ""))[1] in SHARED
