"""Checks whether a file can be used: reads it once, decodes it whole, measures it, and holds its masks against it."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from scipy.fft import dctn

from tasks.common.errors import BadInput
from tasks.common.files import written_beside
from tasks.common.pictures import FORMATS, as_viewed, open_image, png, read_marks
from tasks.common.places import is_of_store, is_remote
from tasks.common.reasons import in_short
from tasks.ingestion.listing import GOOD, LEADS_OUT, DatasetFolder, Listed, Unusable, within
from tasks.ingestion.manifest import ANOMALOUS, NORMAL, PictureRow

MAX_PIXELS = 100_000_000
"""The most a picture may hold, in pixels (10,000 x 10,000, 300 MB decoded). A larger one is taken for a decompression bomb."""
MOST_MARKED = 0.5
"""Share of a picture: a mask that marks more may be inverted."""
INVERTED = "marked over more than half by their masks, so these may be inverted (what is not black is anomalous)"
QUARTER_TURNS = (5, 6, 7, 8)  # orientations of EXIF that exchange width and height


@dataclass(frozen=True)
class Facts:
    """The facts that reading a picture gives."""

    sha256: str = ""
    phash: str = ""
    height: int = 0  # pixels, as a viewer shows it
    width: int = 0
    note: str = ""
    """What about it has to be converted before it is a plain RGB picture."""
    fault: str = ""
    """Why it cannot be used; "" if it can."""
    passing: bool = False
    """Whether the fault is of the disk at that moment, not of the picture: it is not remembered."""


def look_at(portion: Sequence[Listed], source: DatasetFolder, workers: int) -> list[Facts]:
    """Reads pictures and gives what is true of each, in their order; cuts them out of others and joins their masks where that is needed.
    workers: threads, as decoding and hashing release the GIL, and a store takes its time."""

    def look(listed: Listed) -> Facts:
        facts = check(listed, source)
        if not facts.fault:
            union(listed, source)
        return facts

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(look, portion))


def check(listed: Listed, source: DatasetFolder) -> Facts:
    """Reads the picture and its masks; writes them first where they are cut out of others."""
    try:
        if listed.write is not None:
            listed.write()
        elif not within(listed.image, source.folder):
            return Facts(fault=LEADS_OUT)
        facts = _picture(listed.image)
        if facts.fault or not listed.masks:
            return facts
        fault, share = _marked(listed.masks, source, (facts.width, facts.height))
        if fault:
            return Facts(fault=fault)
        if listed.defect == GOOD:
            return Facts(fault=f"called normal, and its mask {listed.masks[0].name} marks something") if share else facts
        if not share:
            return Facts(fault=f"its mask {listed.masks[0].name} marks nothing")
        return replace(facts, note="; ".join(filter(None, (facts.note, INVERTED)))) if share > MOST_MARKED else facts
    except Unusable as error:
        return Facts(fault=str(error))
    except BadInput:
        raise  # a full disk
    except Exception as error:  # a decoder may raise anything on hostile bytes
        if is_of_store(error) or is_of_store(error.__cause__):
            raise  # what is wrong is the store's, or of the way there
        if isinstance(error, OSError) and (error.errno is not None or type(error) not in (OSError, UnidentifiedImageError)):
            if is_remote(listed.image):
                raise
            return Facts(fault=f"cannot be read ({error.strerror or error})", passing=True)  # the disk's; a decoder's own have no number
        return Facts(fault=_undecodable(listed.image, error))


def row(listed: Listed, facts: Facts, source: DatasetFolder, licence: str) -> PictureRow:
    """Gives the manifest row of a picture without fault."""
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
        mask=mask.as_posix() if mask is not None else None,
        licence=licence,
    )


def mask_of(listed: Listed, source: DatasetFolder) -> Path | None:
    """Gives the place of a picture's one mask: its own, or the union of its several. A normal picture has none, whatever a table says."""
    if listed.defect == GOOD:
        return None
    if len(listed.masks) <= 1:
        return listed.masks[0] if listed.masks else None
    return source.written / "masks" / listed.category / listed.defect / f"{listed.image.stem}.png"


def union(listed: Listed, source: DatasetFolder) -> None:
    """Writes the union of a picture's several masks."""
    target = mask_of(listed, source)
    if target is not None and len(listed.masks) > 1:
        marked = np.logical_or.reduce([read_marks(mask) for mask in listed.masks])
        with written_beside(target) as partial:
            partial.write_bytes(png(marked))


def _picture(file: Path) -> Facts:
    data = file.read_bytes()
    if not data:
        return Facts(fault="the file is empty (0 bytes)")
    fault, image = _decoded(data, file)
    if image is None:
        return Facts(fault=fault)
    width, height = image.size
    if image.getexif().get(0x0112) in QUARTER_TURNS:
        width, height = height, width
    return Facts(hashlib.sha256(data).hexdigest(), perceptual_hash(image), height, width, _note(image))


def perceptual_hash(image: Image.Image) -> str:
    """Gives the pHash: which of the 64 lowest frequencies of the picture at 32x32 are above their median (Zauner, "Implementation and
    Benchmarking of Perceptual Image Hash Functions", 2010). 16 hex digits."""
    small = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.BILINEAR, reducing_gap=2.0), dtype=np.float64)
    low = dctn(small)[:8, :8].ravel()
    bits = low > np.median(low[1:])
    return f"{int.from_bytes(np.packbits(bits).tobytes(), 'big'):016x}"


def _decoded(data: bytes, file: Path) -> tuple[str, Image.Image | None]:
    """Decodes a picture; gives what is wrong with it ("" if nothing), and the picture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS decides, below
            image = open_image(io.BytesIO(data))
            width, height = image.size
            if width * height > MAX_PIXELS:
                return f"{width}x{height} pixels when decoded, over the {MAX_PIXELS:,} allowed: a decompression bomb?", None
            image.load()
            return "", image
    except Image.DecompressionBombError:
        return f"over the {MAX_PIXELS:,} pixels allowed when decoded: a decompression bomb?", None
    except Exception as error:  # a decoder may raise anything on hostile bytes
        return _undecodable(file, error), None


def _undecodable(file: Path, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its own message names an address in memory, which would differ from run to run
        return f"cannot be decoded: no picture of a kind that is read here ({', '.join(FORMATS)})"
    detail = in_short(str(error).replace(str(file), file.name) or type(error).__name__)
    return f"cannot be decoded, so it is truncated or no picture ({detail})"


def _note(image: Image.Image) -> str:
    """Says what a viewer does before it shows the picture, beyond turning grey to RGB."""
    notes = []
    if getattr(image, "n_frames", 1) > 1:
        notes.append("animated, its first frame taken")
    if image.getexif().get(0x0112, 1) != 1:
        notes.append("turned as its EXIF says")
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        notes.append("16 bits a channel, scaled to 8")
    elif image.has_transparency_data and not (np.asarray(image.convert("RGBA"))[..., 3] == 255).all():
        notes.append("transparent, laid over white")
    elif image.mode in ("P", "CMYK", "YCbCr", "LAB", "HSV"):
        notes.append({"P": "palette", "CMYK": "CMYK"}.get(image.mode, image.mode) + ", converted to RGB")
    return "; ".join(notes)


def _marked(masks: tuple[Path, ...], source: DatasetFolder, size: tuple[int, int]) -> tuple[str, float]:
    """Says what is wrong with a picture's masks ("" if nothing), and which share of it the largest marks."""
    share = 0.0
    for mask in masks:
        if not mask.is_file():
            return f"has no mask {mask.parent.name}/{mask.name}, though its dataset has masks", 0.0
        if not within(mask, source.folder) and not mask.is_relative_to(source.written):
            return f"its mask {mask.name} is a link that leads out of the dataset's folder", 0.0
        fault, image = _decoded(mask.read_bytes(), mask)
        if image is None:
            return f"its mask {mask.name}: {fault}", 0.0
        turned = as_viewed(image)
        if turned.size != size:
            return f"its mask {mask.name} is {turned.size[0]}x{turned.size[1]} pixels, the picture {size[0]}x{size[1]}", 0.0
        share = max(share, float((np.asarray(turned.convert("L")) > 0).mean()))
    return "", share
