"""Reads datasets that are folders of folders: MVTec AD's layout (Bergmann et al., CVPR 2019), those that copied it, and plain photographs.

<folder>/[<category>/]train/good/*.png
<folder>/[<category>/]test/good/*.png
<folder>/[<category>/]test/<defect>/*.png
<folder>/[<category>/]ground_truth/<defect>/<name>_mask.png      (optional)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tasks.common.errors import BadInput
from tasks.ingestion.listing import GOOD, PICTURE_SUFFIXES, DatasetFolder, Item, Listed, Rejected, files, folders, holds_pictures, pictures

MASK_ENDING = "_mask"


@dataclass(frozen=True)
class Tree:
    """A layout of the family: what it calls its folders, and where it has its masks."""

    normal: str = GOOD
    """The folder of normal pictures."""
    validation: str | None = None
    """A folder beside train and test, also of normal pictures to train on."""
    truth: str = "ground_truth"
    masks_in_folders: bool = False
    """Whether a picture's masks are all the files of a folder named after it."""
    photographs: bool = False
    """Whether a folder without any of this is read as photographs, all normal."""

    def __call__(self, source: DatasetFolder) -> Iterator[Item]:
        """Raises BadInput if the folder is missing or laid out otherwise."""
        folder = source.folder
        children = folders(folder)
        categories = [child for child in children if (child / "train" / self.normal).is_dir()]
        if (folder / "train" / self.normal).is_dir():
            yield from self._category(source.name, folder)
        elif categories:
            for category in categories:
                yield from self._category(category.name, category)
            without = [child for child in children if child not in categories and (child / "test").is_dir()]
            yield from (
                Rejected(child, f"a category without train/{self.normal}, so nothing prompts its test pictures") for child in without
            )
            yield from _loose(folder, "a picture outside of all categories")
        elif self.photographs and (listed := _photographs(folder)):
            for child in listed:
                yield from pictures(child, source.name, "train", GOOD)
                yield from _within(child)
            yield from (
                Rejected(child, "a folder without pictures of its own: what it holds is not read")
                for child in folders(listed[0].parent)
                if listed != [folder] and child not in listed
            )
        elif self.photographs:
            raise BadInput(
                f"{source.name}: {folder} has neither train/good, nor <category>/train/good, nor pictures of its own or one folder down; "
                "lay it out as README.md shows under «Your own data», or say its layout"
            )
        else:
            raise BadInput(
                f"{source.name}: {folder} has neither train/{self.normal} nor <category>/train/{self.normal}; is it the right folder?"
            )

    def _category(self, name: str, folder: Path) -> Iterator[Item]:
        for split in ("train", *([self.validation] if self.validation else [])):
            yield from pictures(folder / split / self.normal, name, "train", GOOD)
            yield from _within(folder / split / self.normal)
            for other in folders(folder / split):
                if other.name != self.normal:
                    yield Rejected(other, f"a folder in {split} that is not {self.normal}: only normal pictures are trained on")
            yield from _loose(folder / split, f"a picture in {split}, outside of {self.normal}")
        yield from _loose(folder, "a picture outside of train and test")
        yield from _loose(folder / "test", "a picture in test, outside of a defect's folder")
        truth = folder / self.truth
        claimed: set[Path] = set()
        for defect in folders(folder / "test"):
            yield from _within(defect)
            if defect.name == self.normal:  # good pictures never have masks
                yield from pictures(defect, name, "test", GOOD)
                continue
            for item in pictures(defect, name, "test", defect.name, lambda file, at=truth / defect.name: self._masks(at, file)):  # type: ignore[misc]
                if isinstance(item, Listed):
                    claimed.update(item.masks)
                yield item
        for mask in (
            mask for defect in folders(truth) for mask in (*files(defect), *(part for child in folders(defect) for part in files(child)))
        ):
            if mask not in claimed:
                yield Rejected(mask, "a mask for no picture")

    def _masks(self, folder: Path, file: Path) -> tuple[Path, ...]:
        """Finds the picture's masks, or gives the first place where one should be; () for a category that has none at all."""
        if not folder.parent.is_dir():
            return ()
        if self.masks_in_folders:
            return tuple(files(folder / file.stem)) or (folder / file.stem / "000.png",)
        candidates = [folder / f"{file.stem}{ending}{suffix}" for ending in (MASK_ENDING, "") for suffix in (".png", ".bmp")]
        return (next((mask for mask in candidates if mask.is_file()), candidates[0]),)


def _loose(folder: Path, reason: str) -> Iterator[Item]:
    """Yields the pictures of a folder that should have folders alone."""
    yield from (Rejected(file, reason) for file in files(folder) if file.suffix.lower() in PICTURE_SUFFIXES)


def _within(folder: Path) -> Iterator[Item]:
    """Yields the folders inside of one whose pictures are read."""
    yield from (Rejected(child, "a folder among pictures: what it holds is not read; move its pictures up") for child in folders(folder))


def _photographs(folder: Path) -> list[Path]:
    """Finds the folder, if it holds pictures; else those of its folders that do, with or without a level called `images`, as the
    Describable Textures Dataset has it: <folder>/images/<class>/*.jpg."""
    nested = folders(folder / "images" if (folder / "images").is_dir() else folder)
    for group in ([folder], nested):
        listed = [child for child in group if holds_pictures(child)]
        if listed:
            return listed
    return []
