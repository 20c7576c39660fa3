"""Cards and contact sheets of pairs: what they state is recorded, and the Hub's library reads it."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import DatasetCard
from PIL import Image

from changepair.flows.cli import main
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import sha256
from changepair.tasks.common.fingerprint import code_of
from changepair.tasks.common.sheets import ABOVE, BESIDE, GAP, TILE
from changepair.tasks.pairs.build import BUILD_NAME, PHOTOGRAPHS_NAME
from changepair.tasks.pairs.card import UNRECORDED, Provenance, Source, provenance_of, write_card
from changepair.tasks.pairs.reading import PairsFolder
from changepair.tasks.pairs.sheet import draw_sheet
from changepair.tasks.synthesis.synthesize import OVERVIEW_NAME


def told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["changepair", "pairs", *words])
    code = 0
    try:
        main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    said = capsys.readouterr()
    return code, said.out + said.err


def test_a_card_of_a_build_states_its_records(small_pairs: Path, tmp_path: Path) -> None:
    pairs = PairsFolder(small_pairs)
    sheet = write_card(pairs, provenance_of(small_pairs), tmp_path / "card.md")
    text = (tmp_path / "card.md").read_text(encoding="utf-8")
    front = DatasetCard.load(tmp_path / "card.md").data.to_dict()
    assert (front["license"], front["size_categories"]) == ("cc0-1.0", ["n<1K"])
    about = json.loads((small_pairs / BUILD_NAME).read_text(encoding="utf-8"))
    assert json.loads(text.partition("```json\n")[2].partition("```")[0]) == about["settings"]
    assert f"hash of the code: {about['code']}" in text and "| photographs | CC0 1.0 | 6 |" in text
    for name in ("pairs.parquet", *pairs.shards):
        assert f"| `{name}` | `{sha256(small_pairs / name)}` |" in text
    counted = [line for line in text.splitlines() if line.startswith("| `")][: len({(row.kind, row.method) for row in pairs.rows})]
    assert sum(int(cell) for line in counted for cell in line.split(" | ")[2:4]) == len(pairs.rows)
    assert f"]({sheet.name})" in text and Image.open(sheet).size[1] > TILE
    assert UNRECORDED not in text


def test_a_card_invents_nothing_about_a_bare_folder(small_pairs: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(small_pairs, bare, ignore=shutil.ignore_patterns(BUILD_NAME, PHOTOGRAPHS_NAME))
    write_card(PairsFolder(bare), provenance_of(bare), tmp_path / "card.md")
    text = (tmp_path / "card.md").read_text(encoding="utf-8")
    assert "license" not in DatasetCard.load(tmp_path / "card.md").data.to_dict()
    assert "CC0" not in text and text.count(UNRECORDED) == 4 and "```json" not in text


@pytest.mark.parametrize(
    ("licences", "front"),
    [
        (["CC BY 4.0"], {"license": "cc-by-4.0"}),
        (["CC BY 4.0", "MIT"], {"license": "other", "license_name": "see-card"}),
        (["house rules"], {"license": "other", "license_name": "see-card"}),
        (["CC BY 4.0", "not stated"], {"license": "other", "license_name": "see-card"}),
        (["not stated"], {}),
        (["your own"], {}),
    ],
)
def test_the_licence_is_claimed_only_where_all_sources_have_it(
    licences: list[str], front: dict[str, str], small_pairs: Path, tmp_path: Path
) -> None:
    sources = [Source(f"photographs-{number}", licence, 3) for number, licence in enumerate(licences)]
    write_card(PairsFolder(small_pairs), Provenance(sources, None, None, None), tmp_path / "card.md")
    written = DatasetCard.load(tmp_path / "card.md").data.to_dict()
    assert {key: value for key, value in written.items() if key.startswith("license")} == front


def test_a_card_replaces_only_a_card(small_pairs: Path, tmp_path: Path) -> None:
    pairs, file = PairsFolder(small_pairs), tmp_path / "README.md"
    file.write_text("# Mine\n", encoding="utf-8")
    with pytest.raises(BadInput, match="exists and is not a card of this command"):
        write_card(pairs, provenance_of(small_pairs), file)
    with pytest.raises(BadInput, match="is a folder; name a file"):
        write_card(pairs, provenance_of(small_pairs), tmp_path)
    assert file.read_text(encoding="utf-8") == "# Mine\n" and [path.name for path in tmp_path.iterdir()] == ["README.md"]
    file.unlink()
    for _time in range(2):
        write_card(pairs, provenance_of(small_pairs), file)


def test_pairs_are_found_by_the_name_of_their_pipeline(
    small_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_pairs, "data/pairs/mine", ignore=shutil.ignore_patterns(BUILD_NAME, PHOTOGRAPHS_NAME))
    for folder in ("data/episodes", "data/code/settings"):
        Path(folder).mkdir(parents=True)
    shutil.copyfile(small_pairs / PHOTOGRAPHS_NAME, "data/episodes/mine.sources.parquet")
    Path("data/code/settings/synthesize_mine.json").write_text('{"pipelines.mine.synthesis": {"seed": 3}}', encoding="utf-8")
    code_now = code_of("changepair.tasks.synthesis.perlin")
    Path("data/code/synthesize.json").write_text(json.dumps(asdict(code_now)))
    assert told(monkeypatch, capsys, "card", "mine") == (0, "card: card-mine.md; contact sheet: card-mine-pairs.png\n")
    text = Path("card-mine.md").read_text(encoding="utf-8")
    assert "| photographs | CC0 1.0 | 6 |" in text and code_now.digest in text and '"seed": 3' in text
    assert "changepair: not recorded; this card: " in text
    shutil.copytree(small_pairs, "mine")
    code, line = told(monkeypatch, capsys, "card", "mine")
    assert (code, line) == (2, "changepair: mine: names a pipeline's pairs and a folder; write ./mine or data/pairs/mine\n")
    assert told(monkeypatch, capsys, "show", "./mine")[0] == 0
    code, line = told(monkeypatch, capsys, "show", "yours")
    assert (
        code == 2 and line == "changepair: yours: no pairs; name a pipeline with pairs in data/pairs, or a folder that has pairs.parquet\n"
    )


def test_a_sheet_shows_pairs_of_each_kind(small_pairs: Path) -> None:
    pairs = PairsFolder(small_pairs)
    line = ABOVE + TILE + GAP
    assert draw_sheet(pairs, count=1).size[1] == len(pairs.kinds) * line + GAP
    sheet = np.asarray(draw_sheet(pairs, ["local-region"], count=1))
    first = next(pair for pair in pairs.read() if pair.row.kind == "local-region")
    expected = [*first.arrays[1::-1], np.repeat(first.arrays[2][..., None] * np.uint8(255), 3, axis=2)]
    for column, picture in enumerate(expected):  # prompt, query and mask
        left = BESIDE + column * (TILE + GAP)
        shown = sheet[ABOVE : ABOVE + TILE, left : left + TILE]
        assert np.array_equal(shown, np.asarray(Image.fromarray(picture).resize((TILE, TILE), Image.Resampling.BILINEAR)))
    with pytest.raises(BadInput, match="has no pair of kind 'scratch'; it has distractor, local-region, none"):
        draw_sheet(pairs, ["scratch"])


def test_pairs_in_a_store_are_read_in_place(small_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    store.put(str(small_pairs), "/bucket/pairs", recursive=True)
    try:
        far = PairsFolder("memory://bucket/pairs")
        assert far.name == "pairs" and [pair.query for pair in far.read()] == [pair.query for pair in PairsFolder(small_pairs).read()]
        write_card(far, provenance_of(far.folder), tmp_path / "far.md")
        write_card(PairsFolder(small_pairs), provenance_of(small_pairs), tmp_path / "near.md")
        assert (tmp_path / "far.md").read_text(encoding="utf-8").replace("far-", "near-") == (tmp_path / "near.md").read_text(
            encoding="utf-8"
        )
    finally:
        store.rm("/bucket", recursive=True)


def test_the_overview_of_synthesis_stays_next_to_a_build(small_pairs: Path) -> None:
    assert {file.name for file in (small_pairs / OVERVIEW_NAME).iterdir()} > {"kinds.csv", "local-region.png"}
