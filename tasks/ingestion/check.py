"""Check pictures: read each once, decode it completely, measure it, and compare it with its masks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn

from changepair.tasks.common.decoding import BLURRED, Extent, Picture, Undecodable, decode, extent_of, marks_of
from changepair.tasks.common.errors import BadInput, in_short
from changepair.tasks.common.pictures import read_marks
from changepair.tasks.common.places import is_of_store, is_remote
from changepair.tasks.ingestion.listing import GOOD, LEADS_OUT, DatasetFolder, ListedPicture, Unusable, within, write_png
from changepair.tasks.ingestion.manifest import ANOMALOUS, NORMAL, PictureRow

MOST_MARKED = 0.5  # share of a picture; a mask that marks more may be inverted
INVERTED = "marked over more than half by masks that may be inverted (all but black is anomalous)"
WARNED = (INVERTED, BLURRED)  # notes that are warnings, because the label or mask may be wrong
GREYS = 256


@dataclass(frozen=True)
class Facts:
    """Properties of a picture that was read."""

    sha256: str = ""
    phash: str = ""
    height: int = 0  # pixels, as a viewer shows it
    width: int = 0
    mask_sha256: str | None = None  # SHA-256 of the mask's bytes; of several masks, SHA-256 of their joined hashes
    note: str = ""  # conversions of the picture or its mask to report, joined by semicolons
    greys: str = ""  # grey levels that occur, of 256, as 64 hex digits; "" for a picture of more than 8 bits until it is scaled
    extent: Extent | None = None  # extent of a picture of more than 8 bits, which is scaled when the range of its dataset is known
    fault: str = ""  # reason why the picture cannot be used; "" if it can
    passing: bool = False  # whether the fault is a passing one of the disk; such a fault is not cached


def look_at(portion: Sequence[ListedPicture], source: DatasetFolder, workers: int) -> list[Facts]:
    """Read pictures and return the facts of each, in their order. If needed, cut pictures out of others and join masks.

    `workers` is the number of threads. They help because decoding and hashing release the GIL, and a store responds slowly.
    """

    def look(listed: ListedPicture) -> Facts:
        facts = check(listed, source)
        target = mask_of(listed, source)
        if not facts.fault and target is not None and len(listed.masks) > 1:
            write_png(target, np.logical_or.reduce([read_marks(mask) for mask in listed.masks]))
        return facts

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(look, portion))


def check(listed: ListedPicture, source: DatasetFolder) -> Facts:
    """Read a picture and its masks. Those that are cut out of other pictures are written first."""
    try:
        if listed.write is not None:
            listed.write()
        elif not within(listed.image, source.folder):
            return Facts(fault=LEADS_OUT)
        facts = _picture(listed.image)
        return facts if facts.fault or not listed.masks else _masked(facts, listed, source)
    except Unusable as error:
        return Facts(fault=str(error))
    except BadInput:
        raise  # for example a full disk
    except Exception as error:  # a decoder may raise anything on hostile bytes
        if is_of_store(error) or is_of_store(error.__cause__) or (isinstance(error, OSError) and is_remote(listed.image)):
            raise  # an error of the store, or of the connection to it
        if isinstance(error, OSError):
            return Facts(fault=f"cannot be read ({error.strerror or error})", passing=True)  # the disk's error; a decoder's has no number
        return Facts(fault=f"cannot be read ({in_short(error)})")


def row(listed: ListedPicture, facts: Facts, source: DatasetFolder, licence: str) -> PictureRow:
    """Return the manifest row of a picture without fault."""
    mask = mask_of(listed, source)
    return PictureRow(
        image=listed.image.as_posix(),
        sha256=facts.sha256,
        phash=facts.phash,
        height=facts.height,
        width=facts.width,
        dataset=source.name,
        category=listed.category,
        split=listed.split,
        label=NORMAL if listed.defect == GOOD else ANOMALOUS,
        defect=listed.defect,
        mask=None if mask is None else mask.as_posix(),
        mask_sha256=None if mask is None else facts.mask_sha256,
        licence=listed.licence or licence,
        samples=None if facts.extent is None else facts.extent.samples,
    )


def mask_of(listed: ListedPicture, source: DatasetFolder) -> Path | None:
    """Return the path of a picture's mask, or of the union of its masks. A normal picture has none, even if a table names one."""
    if listed.defect == GOOD:
        return None
    if len(listed.masks) <= 1:
        return listed.masks[0] if listed.masks else None
    return source.written / "masks" / listed.category / listed.defect / f"{listed.image.stem}.png"


def _picture(file: Path) -> Facts:
    content = file.read_bytes()
    if not content:
        return Facts(fault="the file is empty (0 bytes)")
    try:
        decoded = decode(content)
    except Undecodable as error:
        return Facts(fault=f"cannot be decoded: {error}")
    facts = Facts(hashlib.sha256(content).hexdigest(), "", *decoded.size, note="; ".join(decoded.notes))
    if decoded.deep:
        return replace(facts, extent=extent_of(decoded))
    return replace(facts, phash=perceptual_hash(Image.fromarray(decoded.samples)), greys=greys_of(decoded.samples))


def perceptual_hash(image: Image.Image) -> str:
    """Compute the pHash: which of the 64 lowest frequencies of the picture at 32x32 exceed their median. The result has 16 hex digits.

    See Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010.
    """
    small = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.BILINEAR, reducing_gap=2.0), dtype=np.float64)
    low = dctn(small)[:8, :8].ravel()
    bits = low > np.median(low[1:])
    return f"{int.from_bytes(np.packbits(bits).tobytes(), 'big'):016x}"


def greys_of(picture: Picture) -> str:
    """Return which grey levels occur in a picture, in the format of `Facts.greys`."""
    shown = np.bincount(np.asarray(Image.fromarray(picture).convert("L")).ravel(), minlength=GREYS) > 0
    return np.packbits(shown).tobytes().hex()


def greys_from(text: str) -> NDArray[np.bool_]:
    """Read a text of `greys_of` as 256 flags."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8)).astype(bool)


def _masked(facts: Facts, listed: ListedPicture, source: DatasetFolder) -> Facts:
    """Check a picture's masks, and add their hash and notes to its facts."""
    hashes, notes, share = [], [facts.note] if facts.note else [], 0.0
    for mask in listed.masks:
        if not mask.is_file():
            return Facts(fault=f"mask {mask.parent.name}/{mask.name} is missing, although its dataset has masks")
        if not within(mask, source.folder) and not mask.is_relative_to(source.written):
            return Facts(fault=f"its mask {mask.name} is a link to outside the dataset's folder")
        content = mask.read_bytes()
        try:
            decoded = decode(content)
        except Undecodable as error:
            return Facts(fault=f"its mask {mask.name} cannot be decoded: {error}")
        height, width = decoded.size
        if (height, width) != (facts.height, facts.width):
            return Facts(fault=f"its mask {mask.name} is {width}x{height} pixels, but the picture {facts.width}x{facts.height}")
        marks, note = marks_of(decoded)
        notes += [note] if note and note not in notes else []
        share = max(share, float(marks.mean()))
        hashes.append(hashlib.sha256(content).hexdigest())
    if listed.defect == GOOD:
        return Facts(fault=f"is labelled normal, but its mask {listed.masks[0].name} marks pixels") if share else facts
    if not share:
        return Facts(fault=f"its mask {listed.masks[0].name} marks nothing")
    notes += [INVERTED] if share > MOST_MARKED else []
    joined = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
    return replace(facts, mask_sha256=joined, note="; ".join(notes))
