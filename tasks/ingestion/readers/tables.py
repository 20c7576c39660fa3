"""Read datasets that list their files in a table: VisA's CSV, Real-IAD's JSON, and a table that the user provides."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.parquet as pq

from changepair.tasks.common.errors import BadInput, in_short
from changepair.tasks.common.texts import csv_rows, need_columns, read_json
from changepair.tasks.ingestion.listing import GOOD, DatasetFolder, Item, ListedPicture, Rejected, files, picture

SPLITS = ("train", "test")


def visa(source: DatasetFolder) -> Iterator[Item]:
    """Read split_csv/1cls.csv: object, split, label, image, mask (Zou et al., ECCV 2022)."""
    table = source.needs("split_csv", "1cls.csv")
    named = _Named(source, table)
    for line, row in csv_rows(table, ("object", "split", "label", "image", "mask")):
        yield named.item(line, row["image"], row["object"], row["split"], row["label"], row["mask"], normal="normal")


def real_iad(source: DatasetFolder) -> Iterator[Item]:
    """Read realiad_jsons/<category>.json (Wang et al., CVPR 2024).

    Its train and test lists hold image_path, anomaly_class (OK for normal) and mask_path. Paths are relative to meta.prefix.
    """
    folder = source.needs("realiad_jsons")
    listed = [file for file in (*files(folder), *files(folder / "realiad_jsons")) if file.suffix == ".json"]
    if not listed:
        raise BadInput(f"{source.name}: {folder} holds no <category>.json")
    for file in listed:
        content: Any = read_json(file)
        try:
            prefix, normal = str(content["meta"]["prefix"]), str(content["meta"]["normal_class"])
            rows = [
                (split, *(str(row[key]) for key in ("image_path", "category", "anomaly_class")), str(row.get("mask_path") or ""))
                for split in SPLITS
                for row in content[split]
            ]
        except (KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{file}: not a list of Real-IAD ({type(error).__name__}: {in_short(error)})") from error
        named = _Named(source, file)
        for number, (split, path, category, kind, mask) in enumerate(rows):
            image, truth = (_prefixed(source, prefix, one) for one in (path, mask if kind != normal else ""))
            yield named.item(number, image, category, split, kind, truth, normal=normal)


def table(source: DatasetFolder) -> Iterator[Item]:
    """Read the CSV or parquet file at the dataset's path. It has the manifest's columns image, category, split and label.

    The columns defect, mask and licence are optional. An empty licence is that of the dataset. Paths are relative to the table's folder.
    """
    wanted = ("image", "category", "split", "label")
    if source.folder.suffix == ".parquet":
        rows: Iterator[tuple[int, Mapping[str, Any]]] = enumerate(_parquet(source.folder, wanted), 1)
    else:
        rows = csv_rows(source.folder, wanted)
    named = _Named(source, source.folder)
    for line, row in rows:
        split, label = _text(row["split"]), _text(row["label"])
        if label not in ("0", "1"):
            yield Rejected(source.folder, f"row {line}: its label must be 0 or 1, not {label!r}")
            continue
        defect = _text(row.get("defect")) or "anomalous" if label == "1" else NORMAL
        item = named.item(line, _text(row["image"]), _text(row["category"]), split, defect, _text(row.get("mask")), normal=NORMAL)
        licence = _text(row.get("licence")).strip()
        yield replace(item, licence=licence or None) if isinstance(item, ListedPicture) else item


MOST_NAMED = 100  # largest number of files next to a table that are separate dependencies; beyond it, the table's folder is the dependency
NORMAL = "\0"  # stands for the defect of a normal row


def named_by(file: Path) -> list[str]:
    """List the existing files and folders next to a table that hold the images and masks in it.

    Return [""], the folder of the table, for more than MOST_NAMED files. Return [] for an unreadable table; ingestion reports the reason.
    """
    try:
        rows = _parquet(file, ()) if file.suffix == ".parquet" else [row for _line, row in csv_rows(file, ())]
    except (BadInput, OSError):
        return []
    names = dict.fromkeys(_text(row.get(column)) for row in rows for column in ("image", "mask"))
    paths = [PurePosixPath(name) for name in names if name and "\0" not in name]
    firsts = dict.fromkeys(path.parts[0] for path in paths if path.parts and not path.is_absolute() and ".." not in path.parts)
    found = [name for name in firsts if (file.parent / name).exists()]
    return found if sum((file.parent / name).is_file() for name in found) <= MOST_NAMED else [""]


def _text(value: Any) -> str:
    """Return the text of a table's cell of any type. Null and NaN become ""."""
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


class _Named:
    """Checks the pictures in a table: each is listed once, exists within the dataset, and is normal or has a named defect."""

    def __init__(self, source: DatasetFolder, table: Path) -> None:
        self.table = table
        self.root = source.folder if source.folder.is_dir() else source.folder.parent
        self.rows: dict[str, int] = {}

    def item(self, line: int, image: str, category: str, split: str, kind: str, mask: str, *, normal: str) -> Item:
        """Return a picture, or the reason why it is rejected. `kind` is its defect in the table, or `normal`. An empty `mask` means
        none."""
        for name in (image, *([mask] if mask else [])):
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or not name or "\0" in name:
                return self._refused(line, f"{name!r} is not a path within the dataset")
        for what, name in (("category", category), ("defect", kind if kind != normal else GOOD)):
            if not name.strip() or "/" in name or not name.isprintable():
                return self._refused(line, f"its {what} is {name!r}; use a valid folder name")
        if split not in SPLITS:
            return self._refused(line, f"its split must be train or test, not {split!r}")
        if kind == GOOD and normal != GOOD:
            return self._refused(line, f"it is anomalous, but its defect is called {GOOD!r}, as for normal pictures; rename the defect")
        first = self.rows.setdefault(str(PurePosixPath(image)), line)
        if first != line:
            return self._refused(line, f"{image} is already in row {first}; list it once")
        file = self.root / image
        if not file.is_file():
            return Rejected(file, f"{self.table.name} names it in row {line}, but the file is missing")
        return picture(file, category, split, GOOD if kind == normal else kind, lambda _file: (self.root / mask,) if mask else ())

    def _refused(self, line: int, reason: str) -> Rejected:
        return Rejected(self.table, f"row {line}: {reason}")


def _prefixed(source: DatasetFolder, prefix: str, path: str) -> str:
    """Return a path of Real-IAD relative to the dataset's folder. Pictures may be in a folder for each size."""
    candidates = [PurePosixPath(size, prefix, path) for size in ("", "realiad_256", "realiad_512", "realiad_1024")]
    return str(next((candidate for candidate in candidates if (source.folder / candidate).is_file()), candidates[0])) if path else ""


def _parquet(file: Path, columns: tuple[str, ...]) -> list[Mapping[str, Any]]:
    try:
        read = pq.read_table(io.BytesIO(file.read_bytes()))
    except (OSError, ValueError) as error:
        raise BadInput(f"{file}: not readable as parquet ({in_short(error)})") from error
    need_columns(file, columns, read.column_names)
    return read.to_pylist()
