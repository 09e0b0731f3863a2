"""What becomes of memory that a tensor gave back. Below all rooms."""

import ctypes
import sys
from contextlib import suppress

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of <malloc.h>
AT_MOST = 2**30  # bytes of one block, and of the free end of the heap, that are kept


def keep_freed_memory() -> None:
    """Let this process keep what its tensors gave back, for the next ones; on Linux with glibc, elsewhere nothing.

    Else glibc returns blocks over 32 MiB, and the free end of the heap, to the system, which hands out every page anew,
    filled with zeros. For the first rounds of the same work the heap may still grow a little. It acts on the whole
    process, so a program calls it, as our command line does, and not a library.
    Source: the manual page mallopt(3), and malloc.c of glibc, which has given up the upper limit that the page names.
    """
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):  # a C library without it
            mallopt = ctypes.CDLL(None).mallopt
            if mallopt(MMAP_THRESHOLD, AT_MOST):  # an older glibc refuses, and its own moving threshold is better then
                mallopt(TRIM_THRESHOLD, AT_MOST)
