"""What glibc's malloc does with memory that is freed."""

import ctypes
from contextlib import suppress

# As malloc.h numbers them. Some versions of glibc refuse a threshold for mmap of more than 32 MiB.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
LARGEST = 2**31 - 1


def keep_pages() -> None:
    """Have malloc keep what this process frees, up to 2 GiB, and use it again; another C library stays as it is.

    Else what is larger than some megabytes goes back to the system each time and comes anew, cleared and page by page:
    a tenth of a training step's time on a CPU, in which threads wait for each other too.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        if not mallopt(M_MMAP_THRESHOLD, LARGEST):
            mallopt(M_MMAP_THRESHOLD, 2**25)
        mallopt(M_TRIM_THRESHOLD, LARGEST)
        mallopt(M_TOP_PAD, 2**26)
