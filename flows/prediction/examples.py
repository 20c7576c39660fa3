"""Provide example pictures for `changepair demo`: two defects that the packaged detector finds, one that it misses, and a false alarm.

The pictures come from the packaged textures. The outcomes are those of the packaged detector; a test runs it on every example.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from changepair.tasks.common.pictures import Picture
from changepair.tasks.common.randomness import generator
from changepair.tasks.ingestion.texture_defects import CATEGORIES, Grey, defective

FOUND, MISSED, FALSE_ALARM, PASSED = "defect found", "defect missed", "false alarm", "normal passed"
NORMALS, RATE = 19, 0.05
"""Number of normal pictures that set the threshold of an example, and its false-alarm rate, a fraction."""


@dataclass(frozen=True)
class Example:
    """A picture to check, with a normal picture of the same texture."""

    texture: str
    defect: str | None  # None for a normal picture
    title: str
    outcome: str  # of the packaged detector
    why: str = ""  # reason for a wrong verdict, if it is known

    def write(self, folder: Path) -> tuple[str, str]:
        """Write the normal picture and the picture to check. Return their paths."""
        category = CATEGORIES[self.texture]
        files = folder / f"{self.texture}-normal.png", folder / f"{self.texture}-{self.defect or 'no-defect'}.png"
        normal = category.texture(generator(0, "demo", self.texture), "train")
        if self.defect is None:
            query = category.texture(generator(0, "demo", self.texture, "good", 0), "test")
        else:
            query = defective(category, self.defect, generator(0, "demo", self.texture, self.defect))[0]
        for file, pixels in zip(files, (normal, query), strict=True):
            Image.fromarray(_rounded(pixels)).save(file)
        return str(files[0]), str(files[1])

    def normals(self) -> list[Picture]:
        """Draw the normal pictures that set the threshold."""
        drawn = (
            CATEGORIES[self.texture].texture(generator(0, "demo", self.texture, "calibrate", place), "train") for place in range(NORMALS)
        )
        return [np.stack([_rounded(pixels)] * 3, -1) for pixels in drawn]

    def result(self, anomalous: bool) -> str:
        """Compare a verdict with the truth. anomalous: the verdict of the detector in use."""
        outcome = (FOUND if self.defect else FALSE_ALARM) if anomalous else (MISSED if self.defect else PASSED)
        truth = f"anomalous ({self.defect.replace('-', ' ')})" if self.defect else "normal"
        why = f" {self.why}" if self.why and outcome == self.outcome else ""
        return f"Ground truth: {truth}. Result: {outcome}.{why}"


EXAMPLES = (
    Example("weave", "missing-thread", "Weave, missing thread", FOUND),
    Example("metal", "scratch", "Metal, scratch", FOUND),
    Example("brick", "scratch", "Brick, scratch", MISSED, "The scratch scores no higher than differences between normal pictures."),
    Example("gravel", None, "Gravel, no defect", FALSE_ALARM, "The picture shows stones that no normal picture shows."),
)


def _rounded(pixels: Grey) -> Picture:
    return np.rint(pixels).astype(np.uint8)
