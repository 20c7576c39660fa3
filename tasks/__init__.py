if __name__ == "tasks":  # a second copy of each module would have classes that are not those of the first
    raise ImportError("import changepair.tasks, not tasks")
