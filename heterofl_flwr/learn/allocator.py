"""What the C library does with memory that a process frees: a client's keeps it, a server's gives it back."""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_MOST = 1 << 30  # bytes


def keep_freed_memory() -> bool:
    """Let this process keep freed memory for its next allocations; return whether the C library has that switch.

    By default glibc gives large blocks back to the system as soon as they are free. A training step frees and takes
    the same blocks again and again, and the system hands them out page by page: for the paper's largest CNN 2,700 pages
    and a tenth of the time of each step. Called where our clients train; it changes the whole process.
    """
    return _set(trim=_MOST, mmap=_MOST)


def give_back_freed_memory() -> bool:
    """Let this process give large blocks back when they are freed; return whether the C library has that switch.

    By default glibc does so until the first large block is freed, and from then on keeps blocks of that size. The
    messages of a server have many sizes, so what it kept would fit few of the next ones: with PreResNet18, two to three
    models' worth. Called where our server runs; where clients train in the same process, their call comes later and
    counts.
    """
    return _set(trim=1 << 20, mmap=1 << 20)


def _set(*, trim: int, mmap: int) -> bool:
    """Set from how many bytes on free memory goes back, and blocks are taken from the system one by one."""
    try:
        change = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return False
    return bool(change(_TRIM_THRESHOLD, trim) and change(_MMAP_THRESHOLD, mmap))
