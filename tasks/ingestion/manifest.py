"""The manifest: one row a picture. What ingestion writes and every later stage reads."""

from __future__ import annotations

import pyarrow as pa

SCHEMA = pa.schema(
    [
        pa.field("image", pa.string(), nullable=False),  # path, as pipelines.yaml gives its folder
        pa.field("sha256", pa.string(), nullable=False),  # of the file's bytes
        pa.field("phash", pa.string(), nullable=False),  # of what it shows, 64 bits as hex: near duplicates differ in few
        pa.field("height", pa.int32(), nullable=False),  # pixels
        pa.field("width", pa.int32(), nullable=False),  # pixels
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),  # train or test
        pa.field("label", pa.int8(), nullable=False),  # 0 normal, 1 anomalous
        pa.field("defect", pa.string(), nullable=False),  # "good" for a normal picture
        pa.field("mask", pa.string()),  # path, of the picture's size; null where there is none
        pa.field("licence", pa.string(), nullable=False),
    ]
)

NORMAL = 0
ANOMALOUS = 1
MADE_BY = "ingest"
