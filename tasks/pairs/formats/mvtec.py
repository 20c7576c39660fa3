"""Export pairs in MVTec AD's folders.

    <category>/train/good/<key>.png                      the prompt
    <category>/test/<kind>/<key>.png                     the query; `good` if nothing has changed
    <category>/ground_truth/<kind>/<key>_mask.png        the mask, if there is one

A category is `pairs-train` or `pairs-validation`. Prompt and query of a pair have the same file name.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from changepair.tasks.pairs.export import Written
from changepair.tasks.pairs.reading import PairsFolder, split_of

GOOD = "good"


def write(pairs: PairsFolder, out: Path) -> Written:
    """Write the PNG files of the shards unchanged."""
    counts: Counter[str] = Counter()
    for pair in pairs.read():
        row, split = pair.row, split_of(pair.row)
        category, kind = out / f"pairs-{split}", pair.row.kind if pair.row.changed else GOOD
        files = {category / "train" / GOOD / f"{row.key}.png": pair.prompt, category / "test" / kind / f"{row.key}.png": pair.query}
        if row.changed_area > 0:
            files[category / "ground_truth" / kind / f"{row.key}_mask.png"] = pair.mask
        for file, content in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        counts[split] += 1
    return Written(dict(counts), {})
