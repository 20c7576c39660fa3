"""Decode picture files into samples, and samples into (H, W, 3) uint8 RGB. This module reads all pictures of the project.

A picture of 8 bits a channel is read as a viewer shows it. A deep picture (16-bit PNG, 16-bit, 32-bit or float TIFF, DICOM) keeps its
samples until an `Intensity` sets which of them are black and white. A 12-bit camera in a 16-bit file uses a sixteenth of the file's range.

The module needs only numpy and Pillow. It imports tifffile, imagecodecs and pydicom for the files that need them. It imports no other
module of this project, because `changepair export` copies it next to a model.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

# Formats that Pillow may decode, whatever suffix a file has. Other formats of Pillow may run programs: PostScript runs Ghostscript.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")
DICOM = "DICOM"
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".dcm")  # suffixes of picture files, lower case
MAX_PIXELS = 100_000_000  # largest picture, in pixels (10,000 x 10,000, 300 MB as RGB). A larger one may be a decompression bomb.
if Image.MAX_IMAGE_PIXELS is not None:  # beyond it Pillow warns, and a warning may be configured as an error
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, MAX_PIXELS)
STRIP = 2**20  # pixels that are scaled at once
MAX_BYTES = 2**30  # largest decoded size of a deep picture, in bytes
WHITES = tuple(2.0**bits - 1 for bits in (8, 10, 12, 14, 15, 16, 24, 31, 32))  # white of cameras, detectors and types, by bit depth
LEAST_USED = 0.25  # smallest share of the range to white that pictures must use; below it, the highest sample is white
MARGIN = 0.01  # how far float samples may exceed the range from black to white, as a share of it, because resampling overshoots
MOST_OUTSIDE = 0.5  # largest share of a picture's samples that may lie outside its intensity range
BLURRED = "marked by blurred masks (with many grey levels), which are thresholded at half of their highest value"
LABELS = 16  # largest number of levels of a mask that are labels. A mask with more was blurred, by JPEG or by resizing.
MOST_OBJECTS = 64  # highest number of an object before which numbers may be missing; a blurred mask of 0 and 255 leaves values above it
RINGING = 0.1  # how far high-quality JPEG moves the values of a mask from black and white, as a share of white

Samples = Literal["integer", "float"]
Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]


class Undecodable(ValueError):
    """Raised for a file that is not a picture, or cannot be decoded faithfully. The message states the reason."""


class Range(NamedTuple):
    """The samples that are shown black (low) and white (high)."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Intensity:
    """Intensity ranges of integer and of float samples, for the deep pictures of a dataset or a kit.

    None means the full range of the type: 0 to 1 for floats. `full` tells whether that was requested. Otherwise no normal picture has such
    samples, and a picture that uses little of the range is rejected.
    """

    integer: Range | None = None
    floating: Range | None = None
    full: bool = False

    def of(self, samples: Samples) -> Range | None:
        return self.integer if samples == "integer" else self.floating


UNKNOWN, FULL = Intensity(), Intensity(full=True)


@dataclass(frozen=True)
class Decoded:
    """The samples of a picture file, rotated by its EXIF orientation."""

    samples: NDArray[Any]  # (H, W, 3) uint8 RGB. For a deep picture (H, W) or (H, W, 3) of another type.
    notes: tuple[str, ...] = ()  # conversions to report, such as `palette, converted to RGB`
    alpha: NDArray[np.float64] | None = None  # (H, W) in [0, 1] if transparent. Pictures of 8 bits are already composited over white.
    inverted: bool = False  # whether low samples of a deep picture are white
    stated: Range | None = None  # range that the file states: the window of a DICOM file
    palette: bool = False  # whether the colours come from a palette that is not grey
    lossy: bool = False  # whether it was compressed by JPEG, which changes values a little

    @property
    def deep(self) -> bool:
        """Whether it needs an intensity range to be shown."""
        return self.samples.dtype != np.uint8

    @property
    def kind(self) -> Samples:
        return "float" if self.samples.dtype.kind == "f" else "integer"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.samples.shape[0], self.samples.shape[1]


@dataclass(frozen=True)
class Extent:
    """Lowest and highest sample of a deep picture. `choose_range` chooses from these."""

    samples: Samples
    low: float
    high: float
    stated: Range | None = None


def extent_of(decoded: Decoded) -> Extent:
    """Return the extent of a deep picture's samples."""
    return Extent(decoded.kind, float(decoded.samples.min()), float(decoded.samples.max()), decoded.stated)


def choose_range(extents: Iterable[Extent]) -> Intensity:
    """Choose the intensity range of a dataset or a kit from its normal pictures.

    If all pictures state windows, the range extends from the lowest to the highest edge of these. Otherwise it extends from 0 to the lowest
    white that no sample exceeds: one of WHITES, or also 1 for floats. If samples are negative or exceed every white, it extends from the
    lowest to the highest sample. If a white is over four times the highest sample, the highest sample becomes white. Floats up to 1.6 would
    otherwise keep one of 255 levels.
    """
    listed = list(extents)
    integer, floating = (_chosen([one for one in listed if one.samples == kind]) for kind in ("integer", "float"))
    return Intensity(integer, floating)


def _chosen(extents: Sequence[Extent]) -> Range | None:
    if not extents:
        return None
    stated = [one.stated for one in extents if one.stated is not None]
    if len(stated) == len(extents):
        return Range(min(one.low for one in stated), max(one.high for one in stated))
    low, high = min(one.low for one in extents), max(one.high for one in extents)
    margin, whites = (MARGIN, (1.0, *WHITES)) if extents[0].samples == "float" else (0.0, WHITES)
    for white in whites:
        if low >= -margin * high and high <= (1 + margin) * white:
            return Range(0.0, white if white == whites[0] or high >= LEAST_USED * white else high)
    return Range(low, high)


def decode(content: bytes) -> Decoded:
    """Decode the bytes of a picture file. Raises Undecodable."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata, and about sizes, which are checked here
        try:
            if content[128:132] == b"DICM":
                return _dicom(content)
            image = open_image(io.BytesIO(content)) if not is_deep_tiff(content) else None
            if image is None:
                return _tiff(content)
            refuse_large(image.width, image.height)
            if is_deep_png(content):
                return _png(content, image)
            return of_image(image)
        except Undecodable:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise Undecodable(f"more than {MAX_PIXELS:,} pixels, possibly a decompression bomb; resize or cut it") from error
        except UnidentifiedImageError as error:
            raise Undecodable(f"not a supported picture format ({', '.join((*FORMATS, DICOM))})") from error
        except Exception as error:  # a decoder may raise anything on hostile bytes
            short = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise Undecodable(f"truncated or not an image ({short})") from error


def read_file(file: str | Path, intensity: Intensity = FULL) -> Picture:
    """Read a picture file as (H, W, 3) uint8 RGB. Raises Undecodable or OSError."""
    return to_picture(decode(Path(file).read_bytes()), intensity)


def open_image(stream: Path | IO[bytes]) -> Image.Image:
    """Open a picture of one of FORMATS, without decoding its pixels. Raises Pillow's errors."""
    return Image.open(stream, formats=FORMATS)


def of_image(given: Image.Image) -> Decoded:
    """Return the samples of a Pillow image. 8 bits are read as a viewer shows them; deep modes (I;16, I, F) stay unchanged. Raises
    Undecodable."""
    turned = given.getexif().get(0x0112, 1) != 1
    image = ImageOps.exif_transpose(given) if turned else given  # exif_transpose copies even pictures that need no rotation
    notes = []
    if getattr(given, "n_frames", 1) > 1:
        notes.append("animated (the first frame is used)" if given.format != "TIFF" else f"of {given.n_frames} pages (the first is used)")  # type: ignore[attr-defined]
    if turned:
        notes.append("rotated by EXIF orientation")
    if image.mode == "I":  # Pillow's mode for 16 bits, in PGM files and in its older versions
        samples = np.asarray(image)
        if samples.min() < 0 or samples.max() > 65535:
            raise Undecodable(f"an image of mode I from {samples.min()} to {samples.max()}, not 0 to 65535; give its file or an array")
        return Decoded(samples.astype(np.uint16), tuple(notes))
    if image.mode.startswith("I;16") or image.mode == "F":
        return Decoded(_finite(np.asarray(image)), tuple(notes))
    alpha = None
    colours = np.array((image.mode == "P" and image.getpalette("RGB")) or [0, 0, 0]).reshape(-1, 3)
    palette = bool((colours != colours[:, :1]).any())
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layered = image.convert("RGBA")
        alpha = np.asarray(layered)[..., 3] / 255
        if alpha.min() < 1:
            notes.append("transparent, composited over white")
        image = Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered)
    elif image.mode in ("P", "CMYK", "YCbCr", "LAB", "HSV"):
        notes.append({"P": "palette", "CMYK": "CMYK"}.get(image.mode, image.mode) + ", converted to RGB")
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    return Decoded(np.array(rgb), tuple(notes), alpha, palette=palette, lossy=given.format == "JPEG")


def to_picture(decoded: Decoded, intensity: Intensity = FULL) -> Picture:
    """Scale a picture's samples to (H, W, 3) uint8 RGB. Raises Undecodable as `range_of`."""
    if not decoded.deep:
        return decoded.samples
    low, high = range_of(decoded, intensity)
    height, width = decoded.size
    picture = np.empty((height, width, 3), np.uint8)
    step = max(1, STRIP // width)
    for top in range(0, height, step):  # in strips, because float64 samples of a whole picture take many times its size
        rows = np.s_[top : top + step]
        samples = decoded.samples[rows].astype(np.float64)
        scaled = np.clip((samples - low) * (255.0 / (high - low)), 0, 255)
        if decoded.inverted:
            scaled = 255 - scaled
        if decoded.alpha is not None:
            alpha = decoded.alpha[rows] if scaled.ndim == 2 else decoded.alpha[rows][..., None]
            scaled = alpha * scaled + (1 - alpha) * 255
        eight = np.rint(scaled).astype(np.uint8)
        picture[rows] = eight if eight.ndim == 3 else eight[..., None]
    return picture


def range_of(decoded: Decoded, intensity: Intensity) -> Range:
    """Return the range that a deep picture is scaled by.

    Raises Undecodable if the range is empty, or if more than MOST_OUTSIDE of the samples lie outside it. Outside a full range, no sample
    may lie.
    """
    chosen = intensity.of(decoded.kind)
    low, high = chosen or (0.0, 1.0 if decoded.kind == "float" else float(np.iinfo(decoded.samples.dtype).max))
    if not -math.inf < low < high < math.inf:
        raise Undecodable(f"its intensity range, {Range(low, high)}, is empty; set intensity to [low, high]")
    samples = decoded.samples
    outside = float(((samples < low) | (samples > high)).mean())
    if outside > (MOST_OUTSIDE if chosen is not None else 0):
        raise Undecodable(
            f"{100 * outside:.3g} % of its samples, {samples.min():g} to {samples.max():g}, lie outside the intensity range "
            f"{Range(low, high)}; set intensity to the camera's range"
        )
    if chosen is None and not intensity.full and samples.max() < LEAST_USED * high:
        raise Undecodable(
            f"its samples end at {samples.max():g} of {high:g}, and no normal picture has samples of this type to determine white; set "
            "intensity to the camera's range, or to full"
        )
    return Range(low, high)


def marks_of(decoded: Decoded) -> tuple[Mask, str]:
    """Return the marked pixels of a mask, (H, W), and a note on how they were found ("" for a mask of labels).

    Every value except 0 is marked: masks hold 0 and 1, 0 and 255, or the numbers of objects. A mask with other levels was blurred by JPEG
    or by resizing. There, values of at least half of the highest are marked. Transparent pixels are not marked.
    """
    samples: NDArray[Any] = decoded.samples
    if decoded.inverted:
        samples = samples.max() - samples
    if decoded.alpha is not None and decoded.alpha.min() < 1:
        alpha = decoded.alpha if samples.ndim == 2 else decoded.alpha[..., None]
        samples = samples * alpha if decoded.deep else (samples - (1 - alpha) * 255).round().clip(0)
        samples = samples if samples.any() else decoded.alpha  # drawn in black on a transparent background
    values = samples if samples.ndim == 2 else samples.max(axis=2)
    return (values > 0, "") if decoded.palette else marked(values, lossy=decoded.lossy)


def marked(values: NDArray[Any], *, lossy: bool = False) -> tuple[Mask, str]:
    """Return the marked pixels of mask values (H, W), and a note, as `marks_of`. `lossy` tells whether JPEG may have changed the values."""
    levels = np.flatnonzero(np.bincount(values.ravel(), minlength=256)) if values.dtype == np.uint8 else np.unique(values)
    levels = levels[levels != 0]
    if not len(levels) or _are_labels(levels, lossy=lossy):
        return values != 0, ""
    return values >= levels.max() / 2, BLURRED


def _are_labels(levels: NDArray[Any], *, lossy: bool) -> bool:
    """Return whether levels, ascending and without 0, are labels: the numbers of objects from 1, or at most LABELS values.

    A few levels that are all near 0 or near the highest are compression noise of JPEG, not labels.
    """
    highest = levels[-1]
    integers = bool((levels == np.round(levels)).all())
    if integers and (highest <= MOST_OBJECTS or (levels[0] == 1 and highest == len(levels) and highest != 255)):
        return True
    if integers and len(levels) > 2 and np.ptp(np.diff(levels)) == 0 and levels[1] - levels[0] > 1:  # 10, 20, 30, …
        return True
    near_black, near_white = levels <= RINGING * highest, levels >= (1 - RINGING) * highest
    rings = bool((near_black | near_white).all() and near_black.any() and (lossy or near_white.sum() > 1))
    return len(levels) <= LABELS and not rings


def refuse_large(width: int, height: int) -> None:
    """Raise Undecodable for more than MAX_PIXELS."""
    if width * height > MAX_PIXELS:
        raise Undecodable(f"{width}x{height} pixels, more than {MAX_PIXELS:,}, possibly a decompression bomb; resize or cut it")


def is_deep_png(content: bytes) -> bool:
    return content[:8] == b"\x89PNG\r\n\x1a\n" and content[24:25] == b"\x10"  # the bit depth of IHDR, ISO/IEC 15948 11.2.2


def _png(content: bytes, image: Image.Image) -> Decoded:
    """Decode a PNG of 16 bits a channel. Pillow would keep only the upper 8 bits of colours."""
    import imagecodecs

    samples = imagecodecs.png_decode(content)
    if "transparency" in image.info and samples.ndim == 3 and samples.shape[2] == 3:  # one colour stands for transparent
        clear = (samples == np.array(image.info["transparency"], samples.dtype)).all(axis=2)
        samples = np.dstack([samples, np.where(clear, 0, 65535).astype(np.uint16)])
    return _layered(samples, image.getexif().get(0x0112, 1), ())


def is_deep_tiff(content: bytes) -> bool:
    """Return whether a file is a TIFF with samples of more than 8 bits, or of signed or float type."""
    if content[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return False
    import tifffile

    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page: Any = file.pages[0]
        return bool(page.bitspersample > 8 or page.sampleformat != 1)


def _tiff(content: bytes) -> Decoded:
    import tifffile

    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page: Any = file.pages[0]
        refuse_large(page.imagewidth, page.imagelength)
        if page.nbytes > MAX_BYTES:
            raise Undecodable(f"{page.nbytes:,} bytes when decoded, more than {MAX_BYTES:,}; resize or cut it")
        if page.imagedepth > 1:
            raise Undecodable(f"a volume of {page.imagedepth} planes; save each plane as a picture")
        if page.photometric not in (0, 1, 2):
            raise Undecodable(f"TIFF of {page.bitspersample} bits as {page.photometric.name.lower()}; save it as grey or RGB")
        ends = [start + count for start, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
        if not ends or min(page.databytecounts) == 0 or max(ends) > len(content):
            raise Undecodable("truncated: some of its pixels are missing or beyond the end of the file")
        samples = np.asarray(page.asarray())
        if samples.dtype.kind not in "uif":
            raise Undecodable(f"samples of type {samples.dtype}; save it with integer or float samples")
        if page.axes.startswith("S"):  # one plane for each colour
            samples = np.moveaxis(samples, 0, -1)
        samples = samples.reshape(page.imagelength, page.imagewidth, page.samplesperpixel)
        colours = 3 if page.photometric == 2 else 1
        extra = tuple(int(one) for one in page.extrasamples)
        if samples.shape[2] - len(extra) != colours or len(extra) > 1:
            raise Undecodable(f"{samples.shape[2]} channels, but only {colours} can be shown; save those as a picture")
        notes: tuple[str, ...] = (f"of {len(file.pages)} pages (the first is used)",) if len(file.pages) > 1 else ()
        tag = page.tags.get("Orientation")
        samples = samples.astype(samples.dtype.newbyteorder("="), copy=False)
        if extra and extra[0] == 1 and samples.dtype.kind == "u":  # colours are stored multiplied by alpha
            alpha = samples[..., -1:].astype(np.float64) / np.iinfo(samples.dtype).max
            plain = np.divide(samples[..., :-1], alpha, out=np.zeros((*alpha.shape[:2], colours)), where=alpha > 0)
            samples = np.concatenate([np.rint(plain).clip(0, np.iinfo(samples.dtype).max).astype(samples.dtype), samples[..., -1:]], axis=2)
        elif extra and extra[0] not in (1, 2):  # not transparency
            samples = samples[..., :-1]
            notes += ("with an extra channel, neither a colour nor transparency, which is ignored",)
        return _layered(samples, 1 if tag is None else int(tag.value), notes, inverted=page.photometric == 0)


def _layered(samples: NDArray[Any], orientation: int, notes: tuple[str, ...], *, inverted: bool = False) -> Decoded:
    """Rotate samples (H, W) or (H, W, C), and separate colours from alpha, which is the second or the fourth channel."""
    turned = _turned(samples if samples.ndim == 3 else samples[..., None], orientation)
    if orientation != 1:
        notes += ("rotated by EXIF orientation",)
    alpha = None
    if turned.shape[2] in (2, 4):
        whole = float(np.iinfo(turned.dtype).max) if turned.dtype.kind in "ui" else 1.0
        alpha = (turned[..., -1].astype(np.float64) / whole).clip(0, 1)
        turned = turned[..., :-1]
        if alpha.min() < 1:
            notes += ("transparent, composited over white",)
    return Decoded(_finite(turned[..., 0] if turned.shape[2] == 1 else turned), notes, alpha, inverted)


def _turned(samples: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Rotate samples by an EXIF orientation from 1 to 8, as a viewer does (Exif 2.32, table 6)."""
    if orientation in (5, 6, 7, 8):
        samples = samples.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    return np.ascontiguousarray(samples)


def _dicom(content: bytes) -> Decoded:
    """Decode a monochrome DICOM picture. The modality transformation is applied (PS3.3 C.11.1), and the window is returned as `stated`."""
    try:
        import pydicom
        from pydicom.pixels.processing import apply_modality_lut
    except ModuleNotFoundError as error:
        raise Undecodable("a DICOM file needs pydicom; install it with `pip install pydicom`") from error
    data = pydicom.dcmread(io.BytesIO(content))
    if "PixelData" not in data:
        raise Undecodable("a DICOM file without pixels")
    if data.SamplesPerPixel != 1 or data.PhotometricInterpretation not in ("MONOCHROME1", "MONOCHROME2"):
        raise Undecodable(f"DICOM of {data.PhotometricInterpretation}; only monochrome DICOM is supported; save it as PNG")
    if int(data.get("NumberOfFrames") or 1) > 1:
        raise Undecodable(f"DICOM of {data.NumberOfFrames} frames; save each frame as a picture")
    refuse_large(int(data.Columns), int(data.Rows))
    samples = np.asarray(apply_modality_lut(data.pixel_array, data))
    if samples.dtype == np.uint8 or float(data.get("RescaleSlope") or 1).is_integer():
        samples = samples.astype(np.int32)  # pictures of 8 bits also have a window
    return Decoded(_finite(samples), (), None, data.PhotometricInterpretation == "MONOCHROME1", _window(data))


def _window(data: Any) -> Range | None:
    """Return the samples that a DICOM file's first window shows black and white (PS3.3 C.11.2.1.2 and C.11.2.1.3.2)."""
    if "WindowCenter" not in data or "WindowWidth" not in data or "VOILUTSequence" in data:
        return None
    centre, width = (float(np.atleast_1d(value)[0]) for value in (data.WindowCenter, data.WindowWidth))
    function = str(data.get("VOILUTFunction") or "LINEAR")
    if function == "LINEAR" and width > 1:
        return Range(centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2)
    return Range(centre - width / 2, centre + width / 2) if function == "LINEAR_EXACT" and width > 0 else None


def _finite(samples: NDArray[Any]) -> NDArray[Any]:
    if samples.dtype.kind == "f" and not np.isfinite(samples).all():
        raise Undecodable(f"{int((~np.isfinite(samples)).sum())} of its samples are not numbers")
    return samples.astype(samples.dtype.newbyteorder("="), copy=False)
