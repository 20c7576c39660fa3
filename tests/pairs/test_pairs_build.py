"""Builds of pairs from a folder of photographs: the same bytes for any number of workers, resumed, and never over other files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from conftest import ROOT, run
from finished import SETTINGS, build_small, files_of, photographs_in
from PIL import Image

from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import sha256
from changepair.tasks.common.rows import read_rows
from changepair.tasks.ingestion.manifest import PictureRow
from changepair.tasks.pairs.build import BUILD_NAME, PHOTOGRAPHS_NAME, build
from changepair.tasks.pairs.reading import PairsFolder
from changepair.tasks.synthesis.settings import SynthesisSettings
from changepair.tasks.synthesis.shards import read_index


def test_bytes_depend_neither_on_the_workers_nor_on_the_place(small_pairs: Path, tmp_path: Path) -> None:
    photographs = photographs_in(tmp_path / "elsewhere" / "pictures")
    build_small(photographs, tmp_path / "again", workers=3)
    assert files_of(tmp_path / "again") == files_of(small_pairs)
    assert not any(path.name.startswith(".") for path in tmp_path.iterdir())  # the working folder is removed


def test_no_path_of_the_machine_is_in_a_build(small_pairs: Path) -> None:
    rows = read_index(small_pairs)
    assert all(row.source.startswith("photographs/") for row in rows)
    assert str(small_pairs.parent) not in (small_pairs / BUILD_NAME).read_text(encoding="utf-8")
    table = {row.image: row.sha256 for row in read_rows(small_pairs / PHOTOGRAPHS_NAME, PictureRow, "")}
    assert {row.source for row in rows} <= set(table)
    pictures = {sha256(file) for file in photographs_in(small_pairs.parent / "compared").iterdir()}
    assert set(table.values()) == pictures


def test_a_killed_build_resumes_with_the_same_bytes(small_pairs: Path, tmp_path: Path) -> None:
    photographs, out = photographs_in(tmp_path / "pictures"), tmp_path / "pairs"
    words = [f"--{key.replace('_', '-')}={SETTINGS[key]}" for key in ("pairs", "resolution", "seed", "held_out", "pairs_per_shard")]
    words += ["--kinds", *(f"{kind}={share}" for kind, share in SETTINGS["kinds"].items()), "--licence", "CC0 1.0", "--workers", "1"]
    command = ("-m", "changepair.flows.cli", "pairs", "build", str(photographs), str(out), *words)
    with subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        while not list(tmp_path.glob(".pairs.building/shards/*/records/*.json")):
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
    assert not out.exists()
    result = run(ROOT, sys.executable, *command)
    assert result.returncode == 0 and "shards of an interrupted build" in result.stdout, result.stdout + result.stderr
    assert files_of(out) == files_of(small_pairs)


def test_photographs_of_16_bits_and_in_folders_are_read(tmp_path: Path) -> None:
    for name in ("brick", "gravel"):
        photo = getattr(skimage.data, name)()[:200, :200].astype(np.uint16) * 200
        (tmp_path / "pictures" / name).mkdir(parents=True)
        Image.fromarray(photo).save(tmp_path / "pictures" / name / "0.png")
    built = build_small(tmp_path / "pictures", tmp_path / "pairs", pairs=4, kinds={"none": 1.0})
    assert (built.pairs, built.photographs, built.rejected) == (4, 2, 0)
    rows = read_index(tmp_path / "pairs")
    assert all("/brick/" in row.source or "/gravel/" in row.source for row in rows)
    assert not any(row.source.startswith("/") or ".." in row.source for row in rows)
    query = next(PairsFolder(tmp_path / "pairs").read()).arrays[0]
    assert query.std() > 10  # neither black nor clipped


def test_an_existing_folder_is_kept(small_pairs: Path, tmp_path: Path) -> None:
    photographs, before = photographs_in(tmp_path / "pictures"), files_of(small_pairs)
    assert build_small(photographs, small_pairs).already
    with pytest.raises(BadInput, match=r"is another build, with other settings; name a folder that does not exist$"):
        build_small(photographs, small_pairs, seed=7)
    Image.new("RGB", (96, 96)).save(photographs / "black.png")
    with pytest.raises(BadInput, match=r"with other photographs;"):
        build_small(photographs, small_pairs)
    assert files_of(small_pairs) == before
    (tmp_path / "full").mkdir()
    with pytest.raises(BadInput, match="exists and is no build of pairs"):
        build_small(photographs, tmp_path / "full")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "pictures"]


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    photographs = photographs_in(tmp_path / "pictures")
    painted = SynthesisSettings(pairs=4, kinds={"appearance": 1.0}, pasted=0.0)
    for folder, out, settings, message in (
        (tmp_path / "none", tmp_path / "pairs", SynthesisSettings(pasted=1.0, regenerated=0.0), "is no folder; name a folder"),
        (photographs, photographs / "pairs", SynthesisSettings(pasted=1.0, regenerated=0.0), "lies in the folder of photographs"),
        (photographs, tmp_path / "pairs", painted, "appearance: needs an inpainting model"),
    ):
        with pytest.raises(BadInput, match=message):
            build(folder, out, settings)
    shutil.rmtree(photographs)
    photographs.mkdir()
    (photographs / "broken.png").write_bytes(b"no picture")
    with pytest.raises(BadInput, match="no usable picture"):
        build_small(photographs, tmp_path / "pairs")
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_a_broken_file_is_rejected_and_listed(small_pairs: Path, tmp_path: Path) -> None:
    photographs = photographs_in(tmp_path / "pictures")
    (photographs / "broken.png").write_bytes(b"no picture")
    built = build_small(photographs, small_pairs)
    assert built.already and built.rejected == 1
    about = json.loads((small_pairs / BUILD_NAME).read_text(encoding="utf-8"))
    assert about["photographs"]["count"] == built.photographs == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kinds", "none"], "--kinds none: write a kind and its share, such as local-region=0.6"),
        (["--kinds", "none=nan"], "--kinds none=nan: write a kind and its share"),
        (["--kinds", "none=0.5", "none=0.5"], "--kinds none=0.5: the kind is given twice"),
        (["--kinds", "local-regoin=1"], "not 'local-regoin'"),
        (["--kinds", "none=0.5"], "shares that sum to 1, not 0.5"),
        (["--resolution", "8"], "pairs build: resolution: "),
        (["--workers", "0"], "--workers 0: must be at least 1"),
        (["--pairs", "0"], "--pairs: must be at least 1"),
    ],
)
def test_wrong_options_are_named(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from changepair.flows.cli import main

    monkeypatch.setattr(sys, "argv", ["changepair", "pairs", "build", str(photographs_in(tmp_path / "p")), str(tmp_path / "out"), *words])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr().err
    assert ended.value.code == 2 and message in told and told.count("\n") == 1, told
    assert [path.name for path in tmp_path.iterdir()] == ["p"]
