"""How-to guides name tests that exist, and code that works."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from textwrap import dedent

from conftest import ROOT, save
from skimage import data

from changepair.tasks.ingestion.listing import DatasetFolder, ListedPicture

HOW_TO = ROOT / "docs/pages/how-to"


def test_every_fault_that_has_a_remedy_has_its_test() -> None:
    page = (HOW_TO / "recover.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| fault")]
    assert len(rows) > 25
    for row in rows:
        named = re.findall(r"`([a-z_/]+\.py)(?:::(test_\w+)…)?`", row.rpartition(" | ")[2])
        assert named, row
        for file, test in named:
            assert f"def {test}" in (ROOT / "tests" / file).read_text(), row


def test_the_reader_of_the_page_reads_its_dataset(tmp_path: Path) -> None:
    [code] = re.findall(r"```python\n( *\"\"\"Read the welds.*?)```", (HOW_TO / "add-a-dataset-reader.md").read_text(), re.DOTALL)
    names: dict[str, object] = {"__name__": "weld"}
    exec(dedent(code), names)
    defects = [""] * 8 + ["pore", "crack"]
    for number in range(10):
        save(data.brick()[:32, :32], tmp_path / f"images/{number}.png")
    (tmp_path / "labels.csv").write_text("image,defect\n" + "".join(f"{number}.png,{defect}\n" for number, defect in enumerate(defects)))
    weld = names["weld"]
    assert callable(weld)
    read = [one for one in weld(DatasetFolder("weld", tmp_path, tmp_path / "written")) if isinstance(one, ListedPicture)]
    assert len(read) == 10 and all(one.image.is_file() for one in read)
    assert Counter((one.split, one.defect) for one in read) == Counter(
        {("train", "good"): 6, ("test", "good"): 2, ("test", "pore"): 1, ("test", "crack"): 1}
    )
