"""Reads datasets that say what their files are in a table: VisA's CSV, Real-IAD's JSON, and a table of the user's own."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.parquet as pq

from tasks.common.errors import BadInput
from tasks.ingestion.listing import GOOD, DatasetFolder, Item, Rejected, files, picture


def visa(source: DatasetFolder) -> Iterator[Item]:
    """Reads split_csv/1cls.csv: object, split, label, image, mask (Zou et al., ECCV 2022). Its pictures end in .JPG, capital or not."""
    table = source.needs("split_csv", "1cls.csv")
    for line, row in _csv(table, ("object", "split", "label", "image", "mask")):
        normal = row["label"] == "normal"
        yield _named(source, table, line, row["image"], row["object"], row["split"], GOOD if normal else row["label"], row["mask"])


def real_iad(source: DatasetFolder) -> Iterator[Item]:
    """Reads realiad_jsons/<category>.json beside the pictures' folder (Wang et al., CVPR 2024): train and test lists of image_path,
    anomaly_class (OK for normal) and mask_path, under meta.prefix."""
    folder = source.needs("realiad_jsons")
    listed = [file for file in (*files(folder), *files(folder / "realiad_jsons")) if file.suffix == ".json"]
    if not listed:
        raise BadInput(f"{source.name}: {folder} holds no <category>.json")
    for file in listed:
        try:
            content: Any = json.loads(file.read_text(encoding="utf-8"))
            prefix, normal = content["meta"]["prefix"], content["meta"]["normal_class"]
            rows = [(split, row) for split in ("train", "test") for row in content[split]]
        except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise BadInput(f"{file}: not one of Real-IAD's lists ({type(error).__name__}: {error})") from error
        for number, (split, row) in enumerate(rows):
            defect = GOOD if row["anomaly_class"] == normal else row["anomaly_class"]
            image, mask = (_prefixed(source, prefix, row.get(key)) for key in ("image_path", "mask_path"))
            yield _named(source, file, number, image or "", row["category"], split, defect, mask if defect != GOOD else "")


def table(source: DatasetFolder) -> Iterator[Item]:
    """Reads a CSV or parquet file with the manifest's columns image, category, split, label, and optionally defect and mask.

    Paths are from the table's folder. The dataset's path is the table itself.
    """
    wanted = ("image", "category", "split", "label")
    if source.folder.suffix == ".parquet":
        rows: Iterator[tuple[int, Mapping[str, Any]]] = enumerate(_parquet(source.folder, wanted), 1)
    else:
        rows = _csv(source.folder, wanted)
    for line, row in rows:
        if row["split"] not in ("train", "test") or str(row["label"]) not in ("0", "1"):
            yield Rejected(
                source.folder / f"row {line}", f"split is {row['split']!r} and label {row['label']!r}: train or test, and 0 or 1"
            )
            continue
        defect = str(row.get("defect") or "") if str(row["label"]) == "1" else GOOD
        yield _named(
            source, source.folder, line, str(row["image"]), str(row["category"]), row["split"], defect or "anomalous", row.get("mask") or ""
        )


def _named(source: DatasetFolder, table: Path, line: int, image: str, category: str, split: str, defect: str, mask: str | None) -> Item:
    """Gives a picture that a table names, if what it says stays within the dataset and is there."""
    root = source.folder if source.folder.is_dir() else source.folder.parent
    for name in (image, *([mask] if mask else [])):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not name:
            return Rejected(table, f"row {line}: {name!r} is not a path within the dataset")
    file = root / image
    if not file.is_file():
        return Rejected(file, f"{table.name} names it in row {line}, and it is not there")
    return picture(file, category, split, defect, lambda _file: (root / mask,) if mask else ())


def _prefixed(source: DatasetFolder, prefix: str, path: str | None) -> str:
    """Gives Real-IAD's paths, from the dataset's folder: its pictures come in several sizes, each in a folder of that name."""
    if not path:
        return ""
    parts = [PurePosixPath(*base, path) for base in ((prefix,), ("realiad_256", prefix), ("realiad_512", prefix), ("realiad_1024", prefix))]
    candidates = [PurePosixPath(*(part for part in candidate.parts if part != ".")) for candidate in parts]
    return str(next((candidate for candidate in candidates if (source.folder / candidate).is_file()), candidates[0]))


def _csv(file: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if not file.is_file():
        raise BadInput(f"{file}: no such table")
    with file.open(newline="", encoding="utf-8-sig") as stream:
        rows = csv.DictReader(stream)
        _held(file, columns, rows.fieldnames or [])
        yield from enumerate(rows, 2)


def _parquet(file: Path, columns: tuple[str, ...]) -> list[Mapping[str, Any]]:
    try:
        read = pq.read_table(io.BytesIO(file.read_bytes()))
    except (OSError, ValueError) as error:
        raise BadInput(f"{file}: not readable as parquet ({str(error).splitlines()[0]})") from error
    _held(file, columns, read.column_names)
    return read.to_pylist()


def _held(file: Path, columns: tuple[str, ...], names: Any) -> None:
    missing = [name for name in columns if name not in names]
    if missing:
        raise BadInput(f"{file}: no column {missing[0]!r}; it has {', '.join(names)}")
