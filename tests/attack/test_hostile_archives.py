"""Archives that are damaged or hostile: unpacked whole, or refused in one line, with nothing left and nothing outside."""

from __future__ import annotations

import io
import random
import tarfile
import zipfile
from pathlib import Path

import pytest
from hostile import attack, damaged

from changepair.tasks.common.errors import BadInput
from changepair.tasks.ingestion.unpack import unpack

pytestmark = pytest.mark.attack
FILES = {f"{part}/{number}.png": bytes([number]) * (300 * number + 1) for part in ("train", "test/hole") for number in range(4)}
NAMES = (
    "../out.png", "/tmp/changepair-out.png", "a/../../out.png", "..\\out.png", "C:\\out.png", "a" * 300, "\0", "a\0b",
    ".", "..", "", "/", "caf\u00e9.png",
    "train", "train/0.png", "train/0.png/x", "con", "a/./b", "//x", "~/x",
)  # fmt: skip
KINDS = (tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, b"9")


def tar(mode: str, members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:  # type: ignore[call-overload]
        for about, data in members:
            archive.addfile(about, io.BytesIO(data))
    return stream.getvalue()


def good(mode: str) -> bytes:
    if mode == "zip":
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in FILES.items():
                archive.writestr(name, data)
        return stream.getvalue()
    members = []
    for name, data in FILES.items():
        about = tarfile.TarInfo(name)
        about.size = len(data)
        members.append((about, data))
    return tar(mode, members)


def hostile(draw: random.Random) -> bytes:
    members = []
    for _ in range(draw.randrange(1, 6)):
        about = tarfile.TarInfo(draw.choice((*NAMES, *FILES)))
        about.type, about.linkname = draw.choice(KINDS), draw.choice((*NAMES, *FILES))
        data = b"x" * draw.choice((0, 1, 600)) if about.type == tarfile.REGTYPE else b""
        about.size, about.mode = len(data), draw.choice((0o644, 0o777, 0, 0o4755))
        members.append((about, data))
    return tar("w", members)


def unpacked(data: bytes, folder: Path) -> dict[str, bytes]:
    """Unpacks it into a new folder; gives what is there. Fails where anything stands outside, or is left by one that was refused."""
    place = folder / "place"
    place.mkdir()
    (place / "archive").write_bytes(data)
    before = set(folder.rglob("*"))
    try:
        unpack(place / "archive", place / "new")
        return {file.relative_to(place / "new").as_posix(): file.read_bytes() for file in (place / "new").rglob("*") if file.is_file()}
    finally:
        after = {file for file in folder.rglob("*") if not file.is_relative_to(place / "new")}
        assert after == before and not Path("/tmp/changepair-out.png").exists()
        import shutil

        for link in [file for file in place.rglob("*") if file.is_symlink()]:
            assert link.resolve().is_relative_to(place)
        shutil.rmtree(place)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz", "zip"])
def test_one_that_is_cut_off_anywhere_is_refused(mode: str, tmp_path: Path) -> None:
    whole = good(mode)
    assert unpacked(whole, tmp_path) == FILES

    def attempt(data: bytes) -> None:
        assert unpacked(data, tmp_path) == FILES, "a part was unpacked as whole"

    attack(f"archives, {mode}, cut off", lambda draw: whole[: draw.randrange(len(whole))], attempt)


def test_a_tar_that_is_cut_off_between_two_members_is_refused(tmp_path: Path) -> None:
    whole = good("w")
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        starts = [member.offset for member in archive.getmembers()][1:]
    for start in starts:
        with pytest.raises(BadInput, match="damaged, truncated or encrypted"):
            unpacked(whole[:start], tmp_path)


@pytest.mark.parametrize("mode", ["w", "w:gz", "zip"])
def test_one_that_is_damaged(mode: str, tmp_path: Path) -> None:
    attack(f"archives, {mode}, damaged", lambda draw: damaged(good(mode), draw), lambda data: unpacked(data, tmp_path))


def test_one_whose_members_lead_anywhere(tmp_path: Path) -> None:
    attack("archives, hostile members", hostile, lambda data: unpacked(data, tmp_path))
