"""Export pairs as parquet with embedded pictures, which the library `datasets` decodes: `data/<split>-00000-of-00003.parquet`.

A picture is a struct of `bytes`, the PNG file, and `path`, its name. The schema's metadata has the features under the key `huggingface`, as
`Dataset.to_parquet` writes them. So do the front matter's `dataset_info` and `configs`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from changepair.tasks.common.rows import schema_of
from changepair.tasks.pairs.export import Written
from changepair.tasks.pairs.reading import PARTS, SPLITS, PairsFolder, StoredPair, split_of
from changepair.tasks.synthesis.shards import PairRow

ROWS_A_GROUP = 100  # as `datasets` writes pictures, so that one row can be read without many others
PAIRS_A_FILE = 2500  # about 500 MB of pictures of 256 pixels a side
PICTURE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
DTYPES = {pa.string(): "string", pa.int64(): "int64", pa.int32(): "int32", pa.float64(): "float64", pa.bool_(): "bool"}
OWN = [field for field in schema_of(PairRow) if field.name != "shard"]


def features() -> dict[str, Any]:
    """Return the features of the columns, in the form of `datasets.Features.to_dict`."""
    pictures = {part: {"_type": "Image"} for part in PARTS}
    return {**pictures, **{field.name: {"dtype": DTYPES[field.type], "_type": "Value"} for field in OWN}}


def schema() -> pa.Schema:
    fields = [*(pa.field(part, PICTURE) for part in PARTS), *(pa.field(field.name, field.type) for field in OWN)]
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features()}})})


def write(pairs: PairsFolder, out: Path) -> Written:
    """Write the parquet files of each split that has pairs."""
    counts = {}
    (out / "data").mkdir()
    for split in SPLITS:
        rows = [row for row in pairs.rows if split_of(row) == split]
        files = -(-len(rows) // PAIRS_A_FILE)
        for number in range(files):
            own = rows[number * PAIRS_A_FILE : (number + 1) * PAIRS_A_FILE]
            with pq.ParquetWriter(out / "data" / f"{split}-{number:05d}-of-{files:05d}.parquet", schema(), compression="zstd") as writer:
                for start in range(0, len(own), ROWS_A_GROUP):
                    writer.write_table(_table([*pairs.read(own[start : start + ROWS_A_GROUP])]))
        if rows:
            counts[split] = len(rows)
    return Written(counts, _front(counts))


def _table(pairs: Sequence[StoredPair]) -> pa.Table:
    columns = [
        pa.array([{"bytes": getattr(pair, part), "path": f"{pair.row.key}.{part}.png"} for pair in pairs], PICTURE) for part in PARTS
    ]
    rows = [asdict(pair.row) for pair in pairs]
    columns += [pa.array([row[field.name] for row in rows], field.type) for field in OWN]
    return pa.Table.from_arrays(columns, schema=schema())


def _front(counts: dict[str, int]) -> dict[str, Any]:
    """Return what the Hub reads from the card: the features, and the files of each split."""
    listed = [{"name": part, "dtype": "image"} for part in PARTS]
    listed += [{"name": field.name, "dtype": DTYPES[field.type]} for field in OWN]
    files = [{"split": split, "path": f"data/{split}-*"} for split in counts]
    return {"dataset_info": {"features": listed}, "configs": [{"config_name": "default", "data_files": files}]}
