"""ELPV: 2,624 electroluminescence pictures of solar cells, 300x300, grey (github.com/zae-bayern/elpv-dataset).

Buerhop-Lux et al., "A Benchmark for Visual Identification of Defective Solar Cells in Electroluminescence Imagery",
EU PVSEC 2018. From the package elpv-dataset, an extra because of its licence.

Split as in the few-shot tables of InCTRL (arXiv 2403.06495): normal are the cells with defect probability 0, a quarter of
them for testing (1,131 train, 377 test); anomalous are those with probability 1 (715, mono- and polycrystalline); cells the
experts were unsure of are left out.
"""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path

from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.texts import read_text

LICENCE = "CC BY-NC-SA 4.0"
TEST_SHARE = 0.25
SPLIT_SEED = 42


def write(folder: Path) -> None:
    """Copies the cells to train/good, test/good and test/defective. Raises BadInput if elpv-dataset is not installed."""
    from sklearn.model_selection import train_test_split  # costs a second, which reading other datasets need not spend

    try:
        package = resources.files("elpv_dataset")
    except ModuleNotFoundError as error:
        raise BadInput("elpv: the package elpv-dataset is not installed; pip install 'changepair[samples]'") from error
    with resources.as_file(package / "data") as data:
        cells = _cells(data / "labels.csv")
        normal = [image for image, probability in cells if probability == 0.0]
        train, test = train_test_split(normal, test_size=TEST_SHARE, random_state=SPLIT_SEED)
        _copy(data, train, folder / "train" / "good")
        _copy(data, test, folder / "test" / "good")
        _copy(data, [image for image, probability in cells if probability == 1.0], folder / "test" / "defective")


def _cells(labels: Path) -> list[tuple[str, float]]:
    """Reads labels.csv, each line of which is `images/cell0001.png  1.0  mono`: a picture, its defect probability, its crystal type."""
    rows = (line.split() for line in read_text(labels).splitlines())
    return [(row[0], float(row[1])) for row in rows if row]


def _copy(data: Path, images: list[str], folder: Path) -> None:
    folder.mkdir(parents=True)
    for image in images:
        shutil.copyfile(data / image, folder / Path(image).name)
