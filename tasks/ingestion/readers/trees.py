"""Read folder trees: MVTec AD's layout (Bergmann et al., CVPR 2019), folders of normal and of abnormal pictures, and plain photographs.

The first two have these layouts:

    <folder>/[<category>/]train/good/*.png
    <folder>/[<category>/]test/good/*.png
    <folder>/[<category>/]test/<defect>/*.png
    <folder>/[<category>/]ground_truth/<defect>/<name>_mask.png      (optional; any picture format, upper or lower case)

    <folder>/ok/*.png and <folder>/nok/[<defect>/]*.png              (or other usual names, or folders in the settings)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from changepair.tasks.common.decoding import ENDINGS
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.places import file_names
from changepair.tasks.ingestion.listing import (
    GOOD,
    DatasetFolder,
    FindMasks,
    Item,
    ListedPicture,
    Rejected,
    files,
    folders,
    no_masks,
    pictures,
)
from changepair.tasks.ingestion.readers.labelled import split_normal

MASK_ENDING, TRUTH = "_mask", "ground_truth"
MASK_NAMES = ("mask", "masks", "ground_truth", "groundtruth", "gt")  # usual names of folders of masks, lower case; not kinds of defect
# Usual names of folders of normal pictures, lower case.
NORMAL_NAMES = ("good", "ok", "normal", "pass", "passed", "non_defective", "nominal", "defect-free", "defect_free", "no_defect")
# Usual names of folders of pictures with defects, lower case.
ABNORMAL_NAMES = (
    *("defect", "nok", "bad", "ng", "abnormal", "anomaly", "anomalous", "anomalies", "defective", "defects"),
    *("fail", "failed", "faulty", "broken", "not_ok"),
)


@dataclass(frozen=True)
class Tree:
    """A layout of the family: the names of its folders, and the place of its masks."""

    normal: str = GOOD  # folder of normal pictures
    validation: str | None = None  # folder next to train and test that also holds normal pictures to train on
    masks_in_folders: bool = False  # whether a picture's masks are all files of a folder named after it
    labelled: bool = False  # whether folders of normal and of abnormal pictures are read, by settings or by usual names
    photographs: bool = False  # whether a folder without train/<normal> is read as photographs, all normal

    def __call__(self, source: DatasetFolder) -> Iterator[Item]:
        """Read a dataset. Raises BadInput if the folder is missing or has another layout."""
        folder = source.folder
        children = folders(folder)
        categories = [child for child in children if (child / "train" / self.normal).is_dir()]
        if source.normal or source.abnormal or source.masks:
            if not self.labelled:
                raise BadInput(f"{source.name}: normal, abnormal and masks are for layout: folder; remove them, or the layout")
            yield from _labelled(source, source.normal, source.abnormal)
        elif (folder / "train" / self.normal).is_dir():
            yield from self._category(source.name, folder)
        elif categories:
            for category in categories:
                yield from self._category(category.name, category)
            for child in (child for child in children if child not in categories):
                if (child / "test").is_dir():
                    yield Rejected(child, f"a category without train/{self.normal}, so its test pictures have no prompt")
                else:
                    yield Rejected(child, f"a folder without train/{self.normal}, next to categories: its pictures are not read")
            yield from _loose(folder, "a picture outside all categories")
        elif self.photographs and (listed := _photographs(folder)):
            for child in listed:
                yield from pictures(child, source.name, "train", GOOD)
                yield from _within(child)
            others = [child for child in folders(listed[0].parent) if listed != [folder] and child not in listed]
            yield from (Rejected(child, "a folder without pictures; its contents are not read") for child in others)
        elif self.labelled and (taken := usual_names(folder)).normal:
            yield from _labelled(source, taken.normal, taken.abnormal)
        else:
            raise BadInput(f"{source.name}: {folder} {self._missing(folder)}")

    def _missing(self, folder: Path) -> str:
        if self.photographs:
            return "has no pictures, nor do its folders; correct its path"
        trees = f"has neither train/{self.normal} nor <category>/train/{self.normal}"
        if not self.labelled:
            return f"{trees}; correct its path or layout"
        trees += f", nor a folder called {' or '.join(NORMAL_NAMES[:3])}"
        names = ", ".join(child.name for child in folders(folder)[:8]) or "none"
        advice = "set normal: [...] and abnormal: [...], or layout: photographs for pictures to make pairs from"
        return f"{trees} (its folders: {names}); {advice}"

    def _category(self, name: str, folder: Path) -> Iterator[Item]:
        for split in ("train", *([self.validation] if self.validation else [])):
            yield from pictures(folder / split / self.normal, name, "train", GOOD)
            yield from _within(folder / split / self.normal)
            for other in folders(folder / split):
                if other.name != self.normal:
                    yield Rejected(other, f"a folder in {split} other than {self.normal}; only normal pictures are trained on")
            yield from _loose(folder / split, f"a picture in {split}, outside its folder {self.normal}")
        others = [child for child in folders(folder) if child.name not in {"train", "test", TRUTH, self.validation}]
        yield from (Rejected(child, "a folder next to train and test, which this layout does not read") for child in others)
        yield from _loose(folder, "a picture outside train and test")
        yield from _loose(folder / "test", "a picture in test, outside a defect's folder")
        truth = folder / TRUTH
        claimed: set[Path] = set()
        for defect in folders(folder / "test"):
            yield from _within(defect)
            if defect.name == self.normal:  # good pictures never have masks
                yield from pictures(defect, name, "test", GOOD)
                continue
            for item in _without_shared_masks(pictures(defect, name, "test", defect.name, self._masks(truth, truth / defect.name))):
                if isinstance(item, ListedPicture):
                    claimed.update(item.masks)
                yield item
        for defect in folders(truth):
            masks = (*files(defect), *(part for child in folders(defect) for part in files(child)))
            yield from (Rejected(mask, "a mask without a picture") for mask in masks if mask not in claimed)

    def _masks(self, truth: Path, folder: Path) -> FindMasks:
        """Return a function from a picture to its masks, or to the expected place of its mask. () means that the category has no masks."""
        if not truth.is_dir():
            return no_masks
        if self.masks_in_folders:
            return lambda file: tuple(files(folder / file.stem)) or (folder / file.stem / "000.png",)
        return masks_in(folder)


def _without_shared_masks(items: Iterable[Item]) -> Iterator[Item]:
    """Yield items, but reject pictures that share a mask file, because it may mark the defect of either."""
    listed = list(items)
    images: dict[Path, list[Path]] = {}
    for one in listed:
        if isinstance(one, ListedPicture):
            for own in one.masks:
                images.setdefault(own, []).append(one.image)
    shared = {own: owners for own, owners in images.items() if len(owners) > 1 and own.is_file()}
    for item in listed:
        mask = next((mask for mask in item.masks if mask in shared), None) if isinstance(item, ListedPicture) else None
        if isinstance(item, Rejected) or mask is None:
            yield item
            continue
        other = next(one for one in shared[mask] if one != item.image)
        yield Rejected(
            item.image,
            f"its mask would be {mask.name}, and so would that of {other.parent.name}/{other.name}; put masks into folders named like "
            "those of the pictures, or give all pictures and masks different names",
        )


def masks_in(folder: Path) -> FindMasks:
    """Return a function from a picture to its mask in a folder: `<name>_mask` or `<name>`, in any picture format, upper or lower case."""
    named: dict[str, Path] = {}
    for file in files(folder):
        if file.suffix.lower() in ENDINGS:
            named.setdefault(file.stem.lower(), file)

    def find(file: Path) -> tuple[Path, ...]:
        found = (named.get(f"{file.stem}{ending}".lower()) for ending in (MASK_ENDING, ""))
        return (next((mask for mask in found if mask is not None), folder / f"{file.stem}{MASK_ENDING}.png"),)

    return find


class Taken(NamedTuple):
    """Names of a dataset's folders of normal and of abnormal pictures."""

    normal: tuple[str, ...]
    abnormal: tuple[str, ...]


def usual_names(folder: Path) -> Taken:
    """Find the folders whose names mean that their pictures are normal or abnormal."""
    names = [child.name for child in folders(folder)]
    return Taken(*(tuple(name for name in names if name.lower() in usual) for usual in (NORMAL_NAMES, ABNORMAL_NAMES)))


def _labelled(source: DatasetFolder, normal: Sequence[str], abnormal: Sequence[str]) -> Iterator[Item]:
    """Read folders of normal and of abnormal pictures. A folder in an abnormal one names a kind of defect."""
    names = [*normal, *abnormal, *([source.masks] if source.masks else [])]
    stated = [source.folder / name for name in names]
    for label, place in zip(names, stated, strict=True):
        if PurePosixPath(label).is_absolute() or ".." in PurePosixPath(label).parts:
            raise BadInput(f"{source.name}: the folder {label} is not in {source.folder}; normal, abnormal and masks must be inside it")
        if not place.is_dir():
            raise BadInput(f"{source.name}: no folder {label} in {source.folder}; correct normal, abnormal and masks of the dataset")
        if stated.count(place) > 1:
            raise BadInput(f"{source.name}: the folder {label} occurs twice in normal, abnormal and masks; name it once")
    good = [item for name in normal for item in pictures(source.folder / name, source.name, "train", GOOD)]
    split = split_normal([item.image for item in good if isinstance(item, ListedPicture)])
    yield from (replace(item, split=split[item.image]) if isinstance(item, ListedPicture) else item for item in good)
    for name in normal:
        yield from (item for item in _within(source.folder / name) if item.file not in stated)
    yield from _without_shared_masks(_abnormal(source, abnormal, stated))
    if not (source.normal or source.abnormal):  # next to folders in the settings, other folders may be anything
        reason = "a folder whose name means neither normal nor abnormal; add it to normal: or abnormal: of the dataset"
        yield from (Rejected(child, reason) for child in folders(source.folder) if child.name not in (*normal, *abnormal))
        yield from _loose(source.folder, "a picture outside the folders of normal and abnormal pictures")


def _abnormal(source: DatasetFolder, abnormal: Sequence[str], stated: Sequence[Path]) -> Iterator[Item]:
    """Read folders of abnormal pictures, with their masks. `stated` are all folders in the dataset's settings."""
    for name in abnormal:
        folder = source.folder / name
        within = [child for child in folders(folder) if child not in stated]
        kinds = [child for child in within if child.name.lower() not in MASK_NAMES]
        reason = "a folder of masks by its name; set masks: of the dataset to it"
        yield from (Rejected(child, reason) for child in within if child not in kinds)
        for defect in (folder, *kinds):
            called = defect.name or source.name  # the folder may be "."
            kind = called if called.lower() != GOOD else f"{name}-{GOOD}"
            find: FindMasks = no_masks
            if source.masks:  # in a folder named like the defect or like the abnormal folder; else in the folder of masks
                masks = source.folder / source.masks
                places = (masks / defect.relative_to(folder.parent), masks / defect.relative_to(folder))
                find = masks_in(next((place for place in places if place.is_dir()), masks))
            yield from pictures(defect, source.name, "test", kind, find)
        for defect in kinds:
            yield from (item for item in _within(defect) if item.file not in stated)


def _loose(folder: Path, reason: str) -> Iterator[Item]:
    """Reject the pictures of a folder that should hold only folders."""
    yield from (Rejected(file, reason) for file in files(folder) if file.suffix.lower() in ENDINGS)


def _within(folder: Path) -> Iterator[Rejected]:
    yield from (Rejected(child, "a folder among pictures; its contents are not read, so move its pictures up") for child in folders(folder))


def _photographs(folder: Path) -> list[Path]:
    """Find the folder if it holds pictures, or else its folders that do. <folder>/images/<class>/*.jpg is also read, as in DTD."""
    nested = folders(folder / "images" if (folder / "images").is_dir() else folder)
    for group in ([folder], nested):
        listed = [child for child in group if any(Path(name).suffix.lower() in ENDINGS for name in file_names(child))]
        if listed:
            return listed
    return []
