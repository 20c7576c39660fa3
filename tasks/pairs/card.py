"""Write the data card of finished pairs: a README.md in the format of dataset cards of the Hugging Face Hub."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import write_text, written_beside
from changepair.tasks.common.rows import read_rows
from changepair.tasks.ingestion.manifest import MADE_BY, PictureRow
from changepair.tasks.pairs.build import PHOTOGRAPHS_NAME, UNSTATED, read_build
from changepair.tasks.pairs.reading import SAME, SPLITS, PairsFolder, split_of
from changepair.tasks.pairs.sheet import draw_sheet
from changepair.tasks.synthesis.dataset import hashes
from changepair.tasks.synthesis.shards import INDEX_NAME

MARK = "<!-- written by changepair pairs card -->"
UNRECORDED = "not recorded"
OWN = "your own"  # licence in manifests of folders without a stated one
SHEET_ENDING = "-pairs.png"
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"))
LICENCES = {  # names in manifests, in lower case, and the Hub's identifiers (huggingface.co/docs/hub/repositories-licenses)
    "apache-2.0": "apache-2.0",
    "cc by 2.0": "cc-by-2.0",
    "cc by 4.0": "cc-by-4.0",
    "cc by-nc-sa 4.0": "cc-by-nc-sa-4.0",
    "cc by-sa 3.0": "cc-by-sa-3.0",
    "cc by-sa 4.0": "cc-by-sa-4.0",
    "cc0": "cc0-1.0",
    "cc0 1.0": "cc0-1.0",
    "mit": "mit",
}
LIMITS = """\
- The changes are synthetic. Their kinds, sizes and positions follow the settings, not the defects of a product.
- The mask is on the pixels of the query. Prompt and query also differ in geometry and light, unless the settings turn that off.
- If prompt and query changed roles (`swapped`), the artefact is in the prompt, and the mask marks its place in the query.
- A mask that is empty means no change if the kind is `none` or `distractor`, and a change of the whole picture otherwise.
- The validation split is `held_out`. With four or more photographs, no pair of the other split uses its photographs."""


@dataclass(frozen=True)
class Source:
    """Photographs of one dataset under one licence."""

    dataset: str
    licence: str
    photographs: int


@dataclass(frozen=True)
class Provenance:
    """The origin of pairs. None marks what is not recorded."""

    sources: Sequence[Source] | None
    settings: Mapping[str, Any] | None
    code: str | None  # hash of the code that made the pairs
    made_with: str | None  # version of changepair that made the pairs


def sources_of(rows: Sequence[PictureRow]) -> list[Source]:
    counts = Counter((row.dataset, row.licence) for row in rows)
    return [Source(dataset, licence, count) for (dataset, licence), count in sorted(counts.items())]


def provenance_of(folder: Path) -> Provenance:
    """Read the provenance of pairs from the records of `build` next to them."""
    about = read_build(folder)
    if about is None:
        return Provenance(None, None, None, None)
    sources = sources_of(read_rows(folder / PHOTOGRAPHS_NAME, PictureRow, MADE_BY))
    return Provenance(sources, about["settings"], about["code"], about["changepair"])


def write_card(
    pairs: PairsFolder, provenance: Provenance, out: Path, *, front: Mapping[str, Any] | None = None, files: Mapping[str, str] | None = None
) -> Path:
    """Write the card to `out`, and a contact sheet next to it. Return the path of the sheet.

    `front` adds keys to the front matter. `files` are hashes of files by name; None hashes the index and the shards. An earlier card is
    replaced. Raises BadInput if `out` is another file.
    """
    if out.is_dir():
        raise BadInput(f"{out}: is a folder; name a file")
    if out.is_file() and MARK not in out.read_text(encoding="utf-8", errors="replace"):
        raise BadInput(f"{out}: exists and is not a card of this command; name another file with --out")
    sheet = out.with_name(f"{out.stem}{SHEET_ENDING}")
    drawn = draw_sheet(pairs, count=2, abreast=1)
    text = card(pairs, provenance, sheet.name, _hashes(pairs.folder) if files is None else files, front or {})
    with written_beside(sheet) as partial:
        drawn.save(partial, "PNG")
    write_text(out, text)
    return sheet


def _hashes(folder: Path) -> dict[str, str]:
    known = hashes(folder)
    return {INDEX_NAME: known["pairs"], **known["shards"]}


def card(pairs: PairsFolder, provenance: Provenance, sheet: str, files: Mapping[str, str], front: Mapping[str, Any]) -> str:
    """Return the text of the card. `sheet` is the file name of the contact sheet, and `files` are hashes by file name."""
    sections = [
        f"{_front(pairs, provenance, front)}\n{MARK}\n",
        f"# Change pairs: {pairs.name}\n",
        f"{_summary(pairs)}\n",
        f"![Pairs of each kind: prompt, query, mask and overlay]({sheet})\n",
        f"## Kinds\n\n{_kinds(pairs)}\n",
        f"## Sources and licences\n\n{_sources(pairs, provenance)}\n",
        f"## How the pairs were made\n\n{_made(provenance)}\n",
        f"## Limits\n\n{LIMITS}\n",
        f"## Files\n\n{_table(('file', 'SHA-256'), [(f'`{name}`', f'`{digest}`') for name, digest in files.items()])}",
    ]
    return "\n".join(sections)


def _front(pairs: PairsFolder, provenance: Provenance, front: Mapping[str, Any]) -> str:
    """Return the front matter. A JSON value is valid YAML, so no text needs other quotes."""
    stated = {source.licence for source in provenance.sources or ()}
    licences = stated - {UNSTATED, OWN}
    known = LICENCES.get(next(iter(licences)).lower()) if licences and len(stated) == 1 else None
    named: dict[str, Any] = {"license": known} if known else {"license": "other", "license_name": "see-card"} if licences else {}
    size = next((name for most, name in SIZES if len(pairs.rows) < most), "10M<n<100M")
    entries: dict[str, Any] = {
        **named,
        "pretty_name": f"Change pairs: {pairs.name}",
        "task_categories": ["image-segmentation"],
        "tags": ["change-detection", "anomaly-detection", "synthetic", "changepair"],
        "size_categories": [size],
        **front,
    }
    return "\n".join(["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in entries.items()), "---"])


def _summary(pairs: PairsFolder) -> str:
    splits = Counter(split_of(row) for row in pairs.rows)
    masked = sum(row.changed_area > 0 for row in pairs.rows)
    height, width = next(iter(pairs.read(pairs.rows[:1]))).arrays[2].shape
    counts = " and ".join(f"{splits[split]:,} for {split}" for split in SPLITS if splits[split])
    return (
        f"{len(pairs.rows):,} pairs of pictures: {counts}. A pair has a prompt, a query, and the mask of what differs in the query. "
        f"{masked:,} masks mark a change. The first pair has {width} x {height} pixels."
    )


def _kinds(pairs: PairsFolder) -> str:
    groups = sorted({(row.kind, row.method) for row in pairs.rows})
    lines = []
    for kind, method in groups:
        rows = [row for row in pairs.rows if (row.kind, row.method) == (kind, method)]
        masked = [row.changed_area for row in rows if row.changed_area > 0]
        area = f"{sum(masked) / len(masked):.1%}" if masked else "-"
        splits = Counter(split_of(row) for row in rows)
        lines.append((f"`{kind}`", method, *(f"{splits[split]:,}" for split in SPLITS), area))
    same = [kind for kind in pairs.kinds if kind in SAME]
    note = f"\n\nNothing has changed in pairs of {' and '.join(f'`{kind}`' for kind in same)}." if same else ""
    return _table(("kind", "method", *SPLITS, "mean masked area"), lines).rstrip() + note


def _sources(pairs: PairsFolder, provenance: Provenance) -> str:
    used = len({row.source for row in pairs.rows})
    if provenance.sources is None:
        return f"The index names {used:,} photographs. Their datasets and licences are {UNRECORDED} next to the pairs."
    lines = [(source.dataset, source.licence, f"{source.photographs:,}") for source in provenance.sources]
    return f"{_table(('dataset', 'licence', 'photographs'), lines)}\nThe index names {used:,} of these photographs as a pair's source."


def _made(provenance: Provenance) -> str:
    code = f"{provenance.code}" if provenance.code else UNRECORDED
    lines = [
        f"- changepair: {provenance.made_with or UNRECORDED}; this card: {version('changepair')}",
        f"- hash of the code: {code}",
        f"- settings: {'below' if provenance.settings else UNRECORDED}",
    ]
    if provenance.settings:
        lines.append(f"\n```json\n{json.dumps(provenance.settings, indent=1, ensure_ascii=False)}\n```")
    return "\n".join(lines)


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in line] for line in lines)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
