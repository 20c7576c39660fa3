"""Exports read back by the libraries that they are for: pixels and splits stay the same."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from finished import files_of
from PIL import Image
from pycocotools.coco import COCO
from torch.utils.data import DataLoader

from changepair import ChangePairs
from changepair.flows.cli import main
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import sha256
from changepair.tasks.ingestion.listing import DatasetFolder, ListedPicture
from changepair.tasks.ingestion.readers.catalogue import LAYOUTS
from changepair.tasks.pairs.card import provenance_of
from changepair.tasks.pairs.export import FORMATS, export
from changepair.tasks.pairs.reading import PairsFolder
from changepair.tasks.synthesis.shards import PairRow, read_index

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def stored(small_pairs: Path) -> dict[str, Arrays]:
    """The pixels of each pair by its key, read by tarfile and Pillow alone."""
    pixels: dict[str, Arrays] = {}
    for shard in sorted(small_pairs.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                key, part, *ending = member.name.split(".")
                if ending == ["png"]:
                    content = tar.extractfile(member)
                    assert content is not None
                    pixels.setdefault(key, {})[part] = np.array(Image.open(io.BytesIO(content.read())))
    return pixels


@pytest.fixture(scope="module")
def rows(small_pairs: Path) -> dict[str, PairRow]:
    return {row.key: row for row in read_index(small_pairs)}


def exported(pairs: Path, out: Path, format_: str) -> Path:
    counts = export(PairsFolder(pairs), provenance_of(pairs), out, format_).counts
    assert counts == {"train": 17, "validation": 5}
    return out


def decoded(content: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(content)))


def same(found: Arrays, expected: Arrays) -> bool:
    return set(found) == set(expected) and all(np.array_equal(found[part], expected[part]) for part in expected)


def test_webdataset_reads_the_shards_of_a_split(
    small_pairs: Path, stored: dict[str, Arrays], rows: dict[str, PairRow], tmp_path: Path
) -> None:
    out = exported(small_pairs, tmp_path / "out", "webdataset")
    for split, held_out in (("train", False), ("validation", True)):
        shards = sorted(map(str, (out / split).glob("*.tar")))
        seen = set()
        for sample in wds.WebDataset(shards, shardshuffle=False):
            key = sample["__key__"]
            assert same({part: decoded(sample[f"{part}.png"]) for part in stored[key]}, stored[key])
            assert json.loads(sample["json"])["kind"] == rows[key].kind
            seen.add(key)
        assert seen == {key for key, row in rows.items() if row.held_out == held_out}
    # A shard of one split is copied byte for byte.
    assert [sha256(out / "train" / f"{number:05d}.tar") == sha256(small_pairs / f"{number:05d}.tar") for number in range(3)] == [
        True,
        True,
        False,
    ]


def test_torch_reads_the_webdataset_export_like_the_original(small_pairs: Path, tmp_path: Path) -> None:
    out = exported(small_pairs, tmp_path / "out", "webdataset")
    for held_out in (False, True):
        both = (DataLoader(ChangePairs(folder, held_out=held_out), batch_size=4) for folder in (small_pairs, out))
        for batch, other in zip(*both, strict=True):
            assert all((one == two).all() for one, two in zip(batch, other, strict=True))


def test_a_shard_that_differs_from_the_index_is_refused(small_pairs: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "pairs"
    shutil.copytree(small_pairs, damaged)
    shutil.copyfile(damaged / "00000.tar", damaged / "00001.tar")
    for format_ in FORMATS:
        with pytest.raises(BadInput, match=r"00001\.tar: has .*make the pairs again$"):
            export(PairsFolder(damaged), provenance_of(damaged), tmp_path / "out", format_)
    (damaged / "00001.tar").write_bytes((small_pairs / "00001.tar").read_bytes()[:1000])
    with pytest.raises(BadInput, match=r"00001\.tar: "):
        export(PairsFolder(damaged), provenance_of(damaged), tmp_path / "out", "mvtec")
    assert [path.name for path in tmp_path.iterdir()] == ["pairs"]


def test_a_row_that_differs_from_the_index_is_refused(small_pairs: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "pairs"
    shutil.copytree(small_pairs, damaged)
    content = (damaged / "00000.tar").read_bytes()
    assert content.count(b'"seed": 3') == 8
    (damaged / "00000.tar").write_bytes(content.replace(b'"seed": 3', b'"seed": 4', 1))
    with pytest.raises(BadInput, match=r"00000000\.json has another seed than the index"):
        export(PairsFolder(damaged), provenance_of(damaged), tmp_path / "out", "webdataset")


def test_mvtec_folders_are_read_by_the_reader_of_mvtec_ad(
    small_pairs: Path, stored: dict[str, Arrays], rows: dict[str, PairRow], tmp_path: Path
) -> None:
    out = exported(small_pairs, tmp_path / "out", "mvtec")
    listed: list[Any] = [*LAYOUTS["mvtec-ad"].read(DatasetFolder("exported", out, tmp_path / "written"))]
    items = [item for item in listed if isinstance(item, ListedPicture)]
    assert [item.file.name for item in listed if not isinstance(item, ListedPicture)] == ["README-pairs.png"]  # of the card
    assert Counter(item.category for item in items) == {"pairs-train": 34, "pairs-validation": 10}
    for item in items:
        row, pixels = rows[item.image.stem], stored[item.image.stem]
        assert item.category == ("pairs-validation" if row.held_out else "pairs-train")
        assert np.array_equal(np.array(Image.open(item.image)), pixels["prompt" if item.split == "train" else "query"])
        if item.split == "test":
            assert item.defect == (row.kind if row.changed_area else "good")
            assert [np.array_equal(np.array(Image.open(mask)), pixels["mask"]) for mask in item.masks] == [True] * bool(row.changed_area)
    assert {item.defect for item in items} == {"good", "local-region"}


def runs_of(counts: str) -> Iterator[int]:
    """Decode COCO's compressed run lengths: 5 bits a character from 48, the sixth bit continues, and from the third run on a run is its
    difference to the run before the previous one (the specification is the code of maskApi.c, rleFrString)."""
    earlier: list[int] = []
    characters = iter(counts)
    for first in characters:
        value, shift, character = 0, 0, first
        while True:
            bits = ord(character) - 48
            value |= (bits & 31) << shift
            shift += 5
            if not bits & 32:
                break
            character = next(characters)
        if bits & 16:
            value |= -1 << shift
        if len(earlier) > 2:
            value += earlier[-2]
        earlier.append(value)
        yield value


def test_pycocotools_and_the_specification_read_the_instances(
    small_pairs: Path, stored: dict[str, Arrays], rows: dict[str, PairRow], tmp_path: Path
) -> None:
    out = exported(small_pairs, tmp_path / "out", "coco")
    for split, count in (("train", 17), ("validation", 5)):
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(str(out / "annotations" / f"instances_{split}.json"))
        assert len(coco.imgs) == count and {category["name"] for category in coco.cats.values()} == {row.kind for row in rows.values()}
        for image in coco.imgs.values():
            key = image["pair"]["key"]
            files = {"query": image["file_name"], "prompt": image["prompt_file_name"]}
            found = {part: np.array(Image.open(out / split / name)) for part, name in files.items()}
            annotations = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
            mask = sum((coco.annToMask(annotation) for annotation in annotations), np.zeros((64, 64), np.uint8))
            assert same({**found, "mask": mask * 255}, stored[key])
            for annotation in annotations:
                runs = [*runs_of(annotation["segmentation"]["counts"])]
                flat = np.repeat(np.arange(len(runs)) % 2, runs).reshape((64, 64), order="F")
                assert np.array_equal(flat * 255, stored[key]["mask"])
                assert coco.cats[annotation["category_id"]]["name"] == rows[key].kind
                assert annotation["area"] == flat.sum()
                left, top, width, height = annotation["bbox"]
                assert flat[top : top + height, left : left + width].sum() == flat.sum()
                assert flat[top].any() and flat[top + height - 1].any() and flat[:, left].any() and flat[:, left + width - 1].any()


def test_parquet_has_the_form_that_datasets_writes(
    small_pairs: Path, stored: dict[str, Arrays], rows: dict[str, PairRow], tmp_path: Path
) -> None:
    out = exported(small_pairs, tmp_path / "out", "huggingface")
    for split, held_out in (("train", False), ("validation", True)):
        table = pq.read_table(out / "data" / f"{split}-00000-of-00001.parquet")
        features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
        assert [name for name, feature in features.items() if feature == {"_type": "Image"}] == ["query", "prompt", "mask"]
        assert list(features) == table.column_names
        assert {name: feature["dtype"] for name, feature in features.items() if feature["_type"] == "Value"} == {
            field.name: str(field.type).replace("double", "float64")
            for field in table.schema
            if field.name not in ("query", "prompt", "mask")
        }
        found = table.to_pylist()
        assert [row["key"] for row in found] == [key for key, row in rows.items() if row.held_out == held_out]
        for row in found:
            assert same({part: decoded(row[part]["bytes"]) for part in stored[row["key"]]}, stored[row["key"]])
            assert row["query"]["path"] == f"{row['key']}.query.png"
            assert all(getattr(rows[row["key"]], name) == row[name] for name in table.column_names[3:])


def test_datasets_decodes_the_pictures(small_pairs: Path, stored: dict[str, Arrays], tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    out = exported(small_pairs, tmp_path / "out", "huggingface")
    loaded = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert {split: len(part) for split, part in loaded.items()} == {"train": 17, "validation": 5}
    for part in loaded.values():
        for row in part:
            assert same({name: np.array(row[name]) for name in stored[row["key"]]}, stored[row["key"]])


@pytest.mark.parametrize("out", ["s3://bucket/pairs", "~nobody-of-that-name/pairs"])
def test_an_export_is_never_written_to_another_place_than_named(
    out: str, small_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["changepair", "pairs", "export", str(small_pairs), out, "--format", "coco"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and out in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("format_", FORMATS)
def test_an_export_is_new_and_has_a_card(format_: str, small_pairs: Path, tmp_path: Path) -> None:
    out = exported(small_pairs, tmp_path / "out", format_)
    text, found = (out / "README.md").read_text(encoding="utf-8"), files_of(out)
    listed = {name: digest for name, digest in found.items() if not name.endswith((".png", ".md"))}
    assert all(f"| `{name}` | `{digest}` |" in text for name, digest in listed.items())
    assert (out / "README-pairs.png").is_file()
    with pytest.raises(BadInput, match="exists; name a folder that does not exist"):
        export(PairsFolder(small_pairs), provenance_of(small_pairs), out, format_)
    assert files_of(out) == found
    exported(small_pairs, tmp_path / "again", format_)
    assert files_of(tmp_path / "again") == found
