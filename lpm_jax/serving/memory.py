"""Memory that a long stream needs is taken once, before it begins.

What a process holds of the heap is as large as its worst moment. Compiling leaves heaps full of holes, one for each of
XLA's threads, so a moment in which more is alive at once than before may find no hole and grow one: by 0.1 to 13 MB,
now and then in the first half hour of stream, with as much in use as ever (glibc 2.36, ``mallinfo2``). One heap with
room to spare ends that. Handing each large buffer back to the system ends it as well, and costs a tenth of a chunk's
time in page faults.
"""

from __future__ import annotations

import ctypes
import sys

BLOCK = 16 << 20  # bytes; a chunk of the toy asks for 15 MB at once
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # mallopt(3)


def _glibc() -> ctypes.CDLL | None:
    found = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    return found if hasattr(found, "gnu_get_libc_version") else None


def one_heap() -> bool:
    """All threads share a heap that keeps what is freed and serves buffers below 32 MiB; for before they start.

    Returns whether that was done: with glibc alone.
    """
    libc = _glibc()
    settings = {M_ARENA_MAX: 1, M_MMAP_THRESHOLD: 32 << 20, M_TRIM_THRESHOLD: 1 << 30}
    return libc is not None and all([libc.mallopt(name, value) for name, value in settings.items()])


def keep_room(blocks: int = 3) -> bool:
    """Grow the heap until ``blocks`` of 16 MiB find room in it together, and touch them: after a warm-up.

    Returns whether that was done: with glibc alone.
    """
    libc = _glibc()
    if libc is None:
        return False
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    found = [block for block in (libc.malloc(BLOCK) for _ in range(blocks)) if block]
    for block in found:
        ctypes.memset(block, 1, BLOCK)
    for block in found:
        libc.free(block)
    return len(found) == blocks
