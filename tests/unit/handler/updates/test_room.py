"""Live copies that do not fit."""

from pathlib import Path

import pytest

from torchrec_handler.errors import OptionError
from torchrec_handler.updates.room import check_room, memory_left


def test_a_copy_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    check_room(tmp_path, 1)
    with pytest.raises(OptionError) as error:
        check_room(Path("/dev/shm"), 10**15)  # noqa: S108  every Linux's
    room, _, left = str(error.value).partition(" has ")
    assert room == (
        "torchrec.updates.place: the live copy of the tables takes 1000000.00 GB, and /dev/shm"
    )
    assert left.partition(" GB ")[2] == (
        "left; name another folder, or leave out torchrec.updates.folder"
    )


def machine(folder: Path, groups: str, files: dict[str, str]) -> tuple[Path, Path]:
    """A machine with 3,000 KiB of memory left, as its files tell it."""
    proc, tree = folder / "proc", folder / "groups"
    for name, content in {
        "proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    3000 kB\n",
        "proc/self/cgroup": groups,
        **{f"groups/{name}": content for name, content in files.items()},
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return proc, tree


@pytest.mark.parametrize(
    ("groups", "files", "left"),
    [
        ("", {}, 3000 * 1024),
        (
            "0::/pods/shop\n",
            {
                "pods/memory.max": "9000\n",
                "pods/memory.current": "8500\n",
                "pods/memory.stat": "anon 1\nactive_file 100\ninactive_file 200\n",
                "pods/shop/memory.max": "max\n",
            },
            800,
        ),
        (
            "5:cpu:/\n4:memory:/of/the/machine\n0::/\n",
            {
                "memory/memory.limit_in_bytes": "5000\n",
                "memory/memory.usage_in_bytes": "5000\n",
                "memory/memory.stat": "total_active_file 40\ntotal_inactive_file 2\n",
            },
            42,
        ),
    ],
)
def test_a_container_has_what_its_groups_leave(
    tmp_path: Path, groups: str, files: dict[str, str], left: int
) -> None:
    assert memory_left(*machine(tmp_path, groups, files)) == left
