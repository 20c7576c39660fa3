import ctypes
import os
import sys
from contextlib import suppress

if __name__ == "tasks":  # a second copy of each module would have classes that are not those of the first
    raise ImportError("import changepair.tasks, not tasks")

# PyTorch takes huge pages for large tensors. Otherwise a CPU spends half of the time of an encoder on page faults.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
if sys.platform == "linux":
    # glibc at first returns a block of more than 128 KiB to the system when it is freed. Products of matrices were up to 4 times slower,
    # because each result lay in new pages. These are the values that glibc itself reaches after a block of 32 MiB was freed.
    with suppress(AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        if not any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
            mallopt(M_MMAP_THRESHOLD, 32 << 20)
            mallopt(M_TRIM_THRESHOLD, 64 << 20)
