"""Draw pictures for choosing settings. No table reports them, because settings chosen on a table's targets would flatter that table.

Each module draws one dataset, and its docstring states what the dataset can decide and what it cannot.
"""
