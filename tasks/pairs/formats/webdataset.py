"""Export pairs as WebDataset shards: `<split>/<shard>.tar` and `pairs.parquet`, the index, which `ChangePairs` reads."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.rows import write_rows
from changepair.tasks.pairs.export import Written
from changepair.tasks.pairs.reading import PARTS, SPLITS, PairsFolder, open_shard, split_of
from changepair.tasks.synthesis.shards import INDEX_NAME, PairRow, ShardReader

FILES = (*(f"{part}.png" for part in PARTS), "json")


def write(pairs: PairsFolder, out: Path) -> Written:
    """Check each shard against the index, and copy it. A shard with pairs of both splits is divided.

    Shards in which nothing is divided are copied byte for byte. Raises BadInput if a shard differs from the index.
    """
    rows: list[PairRow] = []
    for name in pairs.shards:
        own = [row for row in pairs.rows if row.shard == name]
        reader = open_shard(pairs.folder / name)
        _check(reader, own)
        splits = [split for split in SPLITS if any(split_of(row) == split for row in own)]
        for split in splits:
            chosen = [row for row in own if split_of(row) == split]
            target = out / split / Path(name).name
            if target.exists():
                raise BadInput(f"{pairs.folder}: two shards are named {target.name}")
            target.parent.mkdir(exist_ok=True)
            if len(splits) == 1:
                target.write_bytes((pairs.folder / name).read_bytes())
            else:
                _write(target, reader, chosen)
            rows += [replace(row, shard=f"{split}/{target.name}") for row in chosen]
    write_rows(out / INDEX_NAME, PairRow, sorted(rows, key=lambda row: row.index))
    return Written(dict(Counter(map(split_of, rows))), {})


def _check(reader: ShardReader, rows: Sequence[PairRow]) -> None:
    """Raise BadInput unless the shard has exactly the files of these pairs, with the same rows."""
    expected = {f"{row.key}.{file}" for row in rows for file in FILES}
    with reader.path.open("rb") as stream, tarfile.open(fileobj=stream) as tar:
        found = set(tar.getnames())
    if expected != found:
        raise BadInput(f"{reader.path}: has other files than the index lists, for example {min(expected ^ found)}; make the pairs again")
    for row in rows:
        stored = json.loads(reader.read(f"{row.key}.json"))
        wrong = [key for key, value in asdict(row).items() if key != "shard" and stored.get(key, value) != value]
        if wrong:
            raise BadInput(f"{reader.path}: {row.key}.json has another {wrong[0]} than the index; make the pairs again")


def _write(target: Path, reader: ShardReader, rows: Sequence[PairRow]) -> None:
    import webdataset as wds

    with wds.TarWriter(str(target), user="", group="", mode=0o644, mtime=0) as shard:
        for row in rows:
            shard.write({"__key__": row.key, **{file: reader.read(f"{row.key}.{file}") for file in FILES}})
