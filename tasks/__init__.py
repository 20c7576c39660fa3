import ctypes
import os
import sys
from contextlib import suppress

if __name__ == "tasks":  # a second copy of each module would have classes that are not those of the first
    raise ImportError("import changepair.tasks, not tasks")

# PyTorch takes huge pages for large tensors. A CPU otherwise spends much of the time of some networks on page faults.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
if sys.platform == "linux" and "glibc.malloc." not in os.environ.get("GLIBC_TUNABLES", ""):
    # glibc at first returns a block of more than 128 KiB to the system when it is freed. Products of matrices were up to 4 times slower,
    # because each result lay in new pages. glibc itself reaches these values after it frees a block of almost 32 MiB.
    with suppress(AttributeError, OSError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        if not {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & os.environ.keys():
            mallopt(M_MMAP_THRESHOLD, 32 << 20)
            mallopt(M_TRIM_THRESHOLD, 64 << 20)
