"""Archives as strangers make them: what would leave the folder is refused, and nothing half-unpacked stays."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from changepair.tasks.common.errors import BadInput
from changepair.tasks.ingestion import unpack as unpacking
from changepair.tasks.ingestion.unpack import unpack


def tar(file: Path, *members: tuple[str, str], link: tuple[str, str] | None = None) -> Path:
    with tarfile.open(file, "w:gz" if file.suffix == ".gz" else "w") as writer:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            writer.addfile(info, io.BytesIO(content.encode()))
        if link is not None:
            info = tarfile.TarInfo(link[0])
            info.type, info.linkname = tarfile.SYMTYPE, link[1]
            writer.addfile(info)
    return file


def packed(file: Path, *members: tuple[str, str]) -> Path:
    with zipfile.ZipFile(file, "w") as writer:
        for name, content in members:
            writer.writestr(name, content)
    return file


@pytest.mark.parametrize("name", ["parts.tar", "parts.tar.gz", "parts.zip"])
def test_an_archive_is_unpacked_whole(tmp_path: Path, name: str) -> None:
    make = packed if name.endswith("zip") else tar
    archive = make(tmp_path / name, ("train/good/0.png", "a"), ("test/good/0.png", "b"))
    assert unpack(archive, tmp_path / "parts") == 2
    assert (tmp_path / "parts/test/good/0.png").read_text() == "b"


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/../../outside", "..\\outside"])
def test_what_would_leave_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    archives = [packed(tmp_path / "parts.zip", ("good", "a"), (name, "b"))]
    if not name.startswith(("/", "..\\")):  # a tar's leading slash is dropped, a backslash is a letter of a name there
        archives.append(tar(tmp_path / "parts.tar", ("good", "a"), (name, "b")))
    for archive in archives:
        with pytest.raises(BadInput, match="would leave the folder"):
            unpack(archive, tmp_path / "parts")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(archive.name for archive in archives)


@pytest.mark.parametrize("target", ["/etc", "../..", "/etc/passwd"])
def test_a_link_that_leads_out_is_refused(tmp_path: Path, target: str) -> None:
    with pytest.raises(BadInput, match="would leave the folder"):
        unpack(tar(tmp_path / "parts.tar", ("good", "a"), link=("link", target)), tmp_path / "parts")
    assert [path.name for path in tmp_path.iterdir()] == ["parts.tar"]


def entry(name: str, kind: bytes, leads_to: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, leads_to
    return info


def test_a_link_too_long_to_be_resolved_writes_nothing_outside(tmp_path: Path) -> None:
    """CVE-2025-4517: the filter of Pythons before 3.11.13 gives up resolving where a path gets too long, and takes it to stay inside."""
    long, steps = "d" * 247, "abcdefghijklmnop"
    archive, path = tmp_path / "parts.tar", ""
    outside = tmp_path / "outside.txt"
    outside.write_text("mine")
    with tarfile.open(archive, "w") as writer:
        for step in steps:
            writer.addfile(entry(f"{path}{long}", tarfile.DIRTYPE))
            writer.addfile(entry(f"{path}{step}", tarfile.SYMTYPE, long))
            path += f"{long}/"
        ladder = f"{'/'.join(steps)}/{'l' * 254}"
        writer.addfile(entry(ladder, tarfile.SYMTYPE, "../" * len(steps)))
        writer.addfile(entry("escape", tarfile.SYMTYPE, f"{ladder}/../outside.txt"))
        writer.addfile(entry("written", tarfile.LNKTYPE, "escape"))
        content = tarfile.TarInfo("written")
        content.size = 5
        writer.addfile(content, io.BytesIO(b"yours"))
    with pytest.raises(BadInput, match=r"would leave the folder|cannot be unpacked"):
        unpack(archive, tmp_path / "parts")
    assert outside.read_text() == "mine" and not (tmp_path / "parts").exists()


def test_links_that_stay_inside_are_made_and_one_under_a_link_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "parts.tar"
    with tarfile.open(archive, "w") as writer:
        writer.addfile(entry("latest", tarfile.SYMTYPE, "train"))  # before what it leads to
        content = tarfile.TarInfo("train/0.png")
        content.size = 1
        writer.addfile(content, io.BytesIO(b"a"))
        writer.addfile(entry("same.png", tarfile.LNKTYPE, "train/0.png"))
    assert unpack(archive, tmp_path / "parts") == 2
    assert (tmp_path / "parts/latest/0.png").read_text() == (tmp_path / "parts/same.png").read_text() == "a"
    with tarfile.open(archive, "w") as writer:
        writer.addfile(entry("up", tarfile.SYMTYPE, "one/two"))
        writer.addfile(entry("one/two", tarfile.SYMTYPE, "nowhere"))
    with pytest.raises(BadInput, match="would leave the folder"):
        unpack(archive, tmp_path / "again")


def test_damaged_missing_and_present_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tar(tmp_path / "parts.tar.gz", ("good", "a" * 100000))
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(whole.read_bytes()[:60])
    (tmp_path / "text.zip").write_text("no archive")
    (tmp_path / "there").mkdir()
    for archive, folder, message in (
        (cut, "parts", "damaged|neither"),
        (tmp_path / "text.zip", "parts", "neither a tar nor a zip"),
        (tmp_path / "none.tar", "parts", "no such file"),
        (whole, "there", "already exists"),
    ):
        with pytest.raises(BadInput, match=message):
            unpack(archive, tmp_path / folder)
    monkeypatch.setattr(unpacking.shutil, "disk_usage", lambda _folder: type("Usage", (), {"free": 1000}))
    with pytest.raises(BadInput, match="GiB free"):
        unpack(whole, tmp_path / "parts")
    assert not (tmp_path / "parts").exists() and not list(tmp_path.glob(".*"))


def test_a_python_that_cannot_unpack_safely_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(tarfile, "data_filter")
    (tmp_path / "parts.tar").write_bytes(b"")
    with pytest.raises(BadInput, match=r"Python 3\.\S+ cannot unpack safely; use Python 3\.11\.4 or later"):
        unpack(tmp_path / "parts.tar", tmp_path / "parts")
    assert not (tmp_path / "parts").exists()
