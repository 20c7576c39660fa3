"""The example of Debian packages: which pictures it takes, and with which licence."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, make_places
from PIL import Image

from changepair.tasks.common.pictures import read_picture
from changepair.tasks.common.rows import read_rows
from changepair.tasks.ingestion.ingest import ingest_folder
from changepair.tasks.ingestion.manifest import PictureRow
from changepair.tasks.ingestion.objects.ingest import ingest_objects
from changepair.tasks.ingestion.objects.table import ObjectRow, to_mask
from changepair.tasks.ingestion.settings import ObjectsSettings

COPYRIGHT = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Source: https://example.org

Files: *
Copyright: 2006 Someone
License: GPL-3+

Files:
 data/textures/rock.jpg
 data/textures/sand*.png
Copyright:
 2010 Another
 2011 A third
License: CC-BY-SA-3.0
Comment: made from a photograph

License: CC-BY-SA-3.0
 The text of the licence.
"""


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("photographs", ROOT / "examples" / "debian-photographs" / "photographs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["photographs"] = module
    spec.loader.exec_module(module)
    module.SCENES = 6
    return module


def grain(side: int, seed: int, alpha: bool = False) -> Image.Image:
    """A picture in which hardly two neighbours are equal; with alpha, a disc on transparent ground."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 4), dtype=np.uint8)
    y, x = np.mgrid[:side, :side] - side / 2
    pixels[..., 3] = np.where(np.hypot(y, x) < side / 3, 255, 0) if alpha else 255
    return Image.fromarray(pixels) if alpha else Image.fromarray(pixels[..., :3])


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    def save(package: str, path: str, image: Image.Image) -> None:
        file = tmp_path / package / "usr/share" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file)

    plain = "Files: *\nCopyright: 2008 Someone\nLicense: GPL-2+\n"
    authors = "Image Authors:\n\n- adwaita*:\n- grid*:\n\n  Copyright 2022 Someone\n  Licensed under Creative Commons Zero License.\n"
    texts = {"mate-backgrounds": plain, "plasma-workspace-wallpapers": plain, "tuxpaint-stamps-default": plain}
    for package, text in (texts | {"supertuxkart-data": COPYRIGHT, "gnome-backgrounds": "Free text."}).items():
        folder = tmp_path / package / "usr/share/doc" / package
        folder.mkdir(parents=True)
        (folder / "copyright").write_text(text)
        (folder / "AUTHORS").write_text(authors)
    save("mate-backgrounds", "backgrounds/mate/nature/Wood.jpg", grain(1300, 0))
    save("mate-backgrounds", "backgrounds/mate/abstract/Waves.png", grain(64, 1))
    save("plasma-workspace-wallpapers", "wallpapers/Path/contents/images/2560x1600.jpg", grain(64, 2))
    save("plasma-workspace-wallpapers", "wallpapers/Path/contents/images/800x600.jpg", grain(64, 3))
    save("gnome-backgrounds", "backgrounds/gnome/grid-d.webp", grain(256, 4))
    for name, picture in {
        "rock.jpg": grain(256, 5),
        "sand2.png": grain(256, 6),
        "wood_copy.png": grain(256, 6),  # the same picture under another name
        "wall.png": grain(256, 7),
        "rock_nm.jpg": grain(256, 8),
        "brick_wall.png": grain(256, 9),
        "plank.png": Image.new("RGB", (256, 256), "brown"),  # drawn
        "stone.png": grain(64, 10),  # small
    }.items():
        save("supertuxkart-data", f"games/supertuxkart/data/textures/{name}", picture)
    for name, picture in {
        "animals/frog.png": grain(120, 11, alpha=True),
        "food/pear.png": grain(130, 12, alpha=True),
        "food/cartoon/pear2.png": grain(130, 13, alpha=True),
        "clothes/hat.png": grain(130, 14, alpha=True),
        "household/cup.png": Image.new("RGBA", (130, 130), "red"),  # drawn
    }.items():
        save("tuxpaint-stamps-default", f"tuxpaint/stamps/{name}", picture)
    return tmp_path


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_photographs_materials_and_cut_outs_are_taken_with_the_licence_of_each(example: Any, packages: Path, tmp_path: Path) -> None:
    folder = tmp_path / "debian"
    example.main(packages, folder)
    photographs, textures, objects = (table(folder / f"{name}.csv") for name in ("photographs", "textures", "objects"))
    assert [Path(row["image"]).name for row in photographs] == ["0000-nature-Wood.png", "0001-images-2560x1600.png"]
    assert max(Image.open(folder / photographs[0]["image"]).size) == 1024
    assert {Path(row["image"]).stem.split("-", 2)[2]: row["licence"].split(" (")[0] for row in textures} == {
        "grid-d": "Creative Commons Zero",
        "rock": "CC-BY-SA-3.0",
        "sand2": "CC-BY-SA-3.0",
        "wall": "GPL-3+",
    }
    stamps = {stamp.name: stamp for stamp in example.cutouts(packages)}
    assert [Path(name).name for name in stamps] == ["frog.png", "pear.png"]
    assert all(row["licence"].startswith(("GPL-2+ (Debian package tuxpaint", "CC-BY", "Creative", "GPL-3+")) for row in objects)
    assert all("tuxpaint-stamps-default" in row["licence"] for row in objects) and len({row["licence"] for row in objects}) > 1
    before = {file: file.read_bytes() for file in folder.rglob("*.png")}
    example.main(packages, folder)
    assert before == {file: file.read_bytes() for file in folder.rglob("*.png")}


def test_cut_outs_are_ingested_as_objects_with_the_licence_of_their_picture(example: Any, packages: Path, tmp_path: Path) -> None:
    folder, places = tmp_path / "debian", make_places(tmp_path / "manifests")
    example.main(packages, folder)
    assert ingest_folder("debian-objects", folder / "objects.csv", layout="table", places=places).kept == 6
    rows = read_rows(places.manifests / "debian-objects.parquet", PictureRow, "ingest")
    assert [row.licence for row in rows] == [row["licence"] for row in table(folder / "objects.csv")]
    found = ingest_objects("debian-objects", ObjectsSettings("masks", str(folder / "masks")), manifests=places.manifests)
    assert found.rejected == 0
    objects = read_rows(places.manifests / "debian-objects.objects.parquet", ObjectRow, "objects")
    assert {row.image for row in objects} == {row.image for row in rows}
    for row in objects:  # a stamp is noise of all levels; every ground here is smooth, or noise that a cut-out does not continue
        mask, picture = to_mask(row), read_picture(Path(row.image))
        assert mask.shape == picture.shape[:2] and picture[mask].std() > 20


def test_a_picture_without_a_licence_is_refused(example: Any) -> None:
    with pytest.raises(ValueError, match="its package states no licence"):
        example.licence_of("usr/share/backgrounds/gnome/new.webp", [(["grid*"], "CC0")])
