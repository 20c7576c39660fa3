import os

if __name__ == "tasks":  # a second copy of each module would have classes that are not those of the first
    raise ImportError("import changepair.tasks, not tasks")

# PyTorch takes huge pages for large tensors. Otherwise a CPU spends half of the time of an encoder on page faults.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
