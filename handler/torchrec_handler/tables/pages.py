"""Linux's calls for pages of files that Python's mmap has not: at an address, and of any part."""

import ctypes
import mmap
import os

MAP_FIXED, MADV_POPULATE_READ, MADV_COLLAPSE = 0x10, 22, 25
"""Of Linux's mman.h."""

_libc = ctypes.CDLL(None, use_errno=True)
_mmap, _madvise = _libc.mmap, _libc.madvise
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def map_at(address: int, size: int, protection: int, file: int, offset: int = 0) -> None:
    """Map a part of a file in the place of what is mapped at an address.

    Args:
        address: of a page.
        size: bytes.
        protection: mmap.PROT_READ, and mmap.PROT_WRITE.
        file: its descriptor.
        offset: in the file, of a page.

    Raises:
        OSError: it cannot be mapped.
    """
    flags = mmap.MAP_SHARED | MAP_FIXED
    if _mmap(address, size, protection, flags, file, offset) != address:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def advise(address: int, size: int, advice: int) -> None:
    """Tell the kernel what pages are for; one that does not know an advice does without it."""
    _madvise(address, size, advice)
