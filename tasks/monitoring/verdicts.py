"""Store the labels of a line's pictures as a dataset in MVTec AD's layout, which a retraining can use.

    <record>/verdicts/
      train/good/…       the line's prompts and the normal pictures that set its threshold
      test/good/…        pictures that people labelled as normal
      test/<defect>/…    pictures that people labelled as anomalous, by defect

A picture's folder is its label, and the only record of it. To change a label, move or delete the file.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from changepair.tasks.common.decoding import Intensity
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.pictures import Picture
from changepair.tasks.ingestion.listing import GOOD
from changepair.tasks.monitoring.record import Judged
from changepair.tasks.prediction.files import names_of
from changepair.tasks.prediction.outputs import write_picture
from changepair.tasks.prediction.pictures import as_picture

TRAIN, TEST = Path("train", GOOD), Path("test")
DEFECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _-]{0,63}")


class Verdicts:
    """A dataset of a line's pictures."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has_normals(self, files: Sequence[Path], intensity: Intensity) -> None:
        """Set the normal training pictures of the dataset to these files.

        intensity: the range of pictures of more than 8 bits, from the line's kit. Raises BadInput if a file cannot be read.
        """
        wanted = {f"{str(name).replace('/', '-')}.png": file for name, file in zip(names_of(files), files, strict=True)}
        for name, file in wanted.items():
            copy, modified = self.folder / TRAIN / name, file.stat().st_mtime_ns
            if not copy.is_file() or copy.stat().st_mtime_ns != modified:
                write_picture(copy, as_picture(file, intensity=intensity))
                os.utime(copy, ns=(modified, modified))
        for copy in (self.folder / TRAIN).iterdir():
            if copy.name not in wanted:
                copy.unlink()

    def give(self, row: Judged, picture: Picture, defect: str) -> None:
        """Set the label of a picture HxWx3 uint8 to `good` or a defect. Raises BadInput if the defect's name is invalid."""
        if not DEFECT.fullmatch(defect):
            raise BadInput(f"{defect!r}: is not a valid defect name; use at most 64 letters, digits, spaces, - and _")
        file = self.folder / TEST / defect / f"{row.name}.png"
        write_picture(file, picture)
        self.withdraw(row, but=file)

    def withdraw(self, row: Judged, *, but: Path | None = None) -> None:
        """Remove the label of a picture, if any. but: a file to keep."""
        for file in self._files(row):
            if file != but:
                file.unlink()
                if not any(file.parent.iterdir()):
                    file.parent.rmdir()

    def of(self, row: Judged) -> str | None:
        """Return the label of a picture: `good`, or the defect; None without a label."""
        return next((file.parent.name for file in self._files(row)), None)

    def counts(self) -> Counter[str]:
        """Count the labelled pictures, by label."""
        return Counter(file.parent.name for file in (self.folder / TEST).glob("*/*.png") if not file.name.startswith("."))

    def names(self) -> set[str]:
        """Return the `Judged.name` of every labelled picture."""
        return {file.stem for file in (self.folder / TEST).glob("*/*.png")}

    def _files(self, row: Judged) -> list[Path]:
        return [file for folder in sorted((self.folder / TEST).glob("*")) if (file := folder / f"{row.name}.png").is_file()]
