"""Build pairs alone, from a folder of photographs, without a pipeline.

The build works in a hidden folder next to its result, and moves the result into place at the end. A killed build keeps its complete shards.
The result has the files of the stage `synthesize` and four more:

    build.json            settings, photographs, and the versions of code and packages
    photographs.parquet   one row for each photograph, as in a manifest
    rejected.csv          files that are no usable photographs, with the reason

Paths of photographs are relative, so that the bytes of a build do not depend on the place of the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

from changepair.tasks.common import stopping
from changepair.tasks.common.errors import BadInput, in_short
from changepair.tasks.common.files import write_text
from changepair.tasks.common.fingerprint import ROOT, code_of
from changepair.tasks.common.places import is_remote
from changepair.tasks.common.rows import read_rows, table_of, write_rows
from changepair.tasks.ingestion.manifest import MADE_BY, PictureRow
from changepair.tasks.synthesis.settings import SynthesisSettings

BUILD_NAME, PHOTOGRAPHS_NAME, REJECTED_NAME = "build.json", "photographs.parquet", "rejected.csv"
DATASET = "photographs"
UNSTATED = "not stated"  # licence of photographs without a stated one
SYNTHESIS = "changepair.tasks.synthesis.synthesize"
UNPAINTED: Mapping[str, float] = {"pasted": 1.0, "regenerated": 0.0}
"""Settings with which objects are pasted, so that no kind needs an inpainting model."""


@dataclass(frozen=True)
class Built:
    pairs: int
    dropped: int  # draws that made no pair
    photographs: int
    rejected: int  # files that are no usable photographs
    kept: int  # shards of an interrupted build
    already: bool = False  # whether the result existed


def build(
    photographs: Path,
    out: Path,
    settings: SynthesisSettings,
    *,
    licence: str | None = None,
    workers: int = 1,
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> Built:
    """Make pairs from the photographs in a folder, or in its folders, into the new folder `out`.

    The bytes do not depend on `workers`, the number of processes. `licence` is that of the photographs; None records UNSTATED. `report` is
    called with the number of complete shards and of all. If `out` holds the same build, nothing changes.

    Raises BadInput if `out` exists and is not this build, if a kind needs an inpainting model, or if there is no usable photograph.
    """
    _refuse(photographs, out, settings)
    work = out.parent / f".{out.name}.building"
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{out}: cannot be written ({error.strerror}); name another place") from error
    try:
        return _build(photographs, out, settings, licence, workers, report, work.resolve())
    except BrokenProcessPool as error:
        raise BadInput("a worker was killed, maybe for lack of memory; run the command again with fewer --workers to resume") from error
    except BadInput:  # the same command would fail again
        shutil.rmtree(work)
        raise


def _build(
    photographs: Path,
    out: Path,
    settings: SynthesisSettings,
    licence: str | None,
    workers: int,
    report: Callable[[int, int], None],
    work: Path,
) -> Built:
    from changepair.tasks.synthesis.shards import read_index
    from changepair.tasks.synthesis.synthesize import Inputs, finish, shard_count, start

    rejected = _ingest(photographs, work, licence)
    rows = read_rows(work / PHOTOGRAPHS_NAME, PictureRow, MADE_BY)
    about = _about(settings, rows)
    if out.exists():
        _refuse_other(out, about)
        shutil.rmtree(work)
        return Built(len(read_index(out)), 0, len(rows), rejected, 0, already=True)
    inputs = Inputs(_tables(work, rows), work / "no-inpainter")
    shards, missing = start(settings, inputs, work / "shards")
    total = shard_count(settings)
    _make(settings, inputs, missing, shards, work, workers, lambda done: report(total - len(missing) + done, total))
    write_text(shards.pairs / BUILD_NAME, json.dumps(about, indent=1, sort_keys=True) + "\n")
    for name in (PHOTOGRAPHS_NAME, REJECTED_NAME):
        shutil.copyfile(work / name, shards.pairs / name)
    done = finish(settings, shards, out.absolute())
    shutil.rmtree(work)
    return Built(done.pairs, done.dropped, len(rows), rejected, total - len(missing))


def _refuse(photographs: Path, out: Path, settings: SynthesisSettings) -> None:
    if not photographs.is_dir():
        raise BadInput(f"{photographs}: is no folder; name a folder of photographs, or a URL such as s3://bucket/photographs")
    if is_remote(out):
        raise BadInput(f"{out}: pairs are made on this machine; name a local folder, and copy it to the store")
    if not is_remote(photographs) and out.resolve().is_relative_to(photographs.resolve()):
        raise BadInput(f"{out}: lies in the folder of photographs; name a place outside of it")
    if settings.repaints:
        raise BadInput(
            f"{', '.join(dict.fromkeys(settings.repaints))}: needs an inpainting model; leave it out of --kinds, or make the pairs by a "
            "pipeline"
        )
    if settings.pairs < 1:
        raise BadInput("--pairs: must be at least 1")


def _refuse_other(out: Path, about: Mapping[str, Any]) -> None:
    """Raise BadInput if `out` is not the complete result of this build."""
    old = read_build(out)
    if old is None:
        raise BadInput(f"{out}: exists and is no build of pairs; name a folder that does not exist")
    if old != about:
        changed = [key for key in about if old.get(key) != about[key]]
        raise BadInput(f"{out}: exists and is another build, with other {', '.join(changed)}; name a folder that does not exist")


def _ingest(photographs: Path, work: Path, licence: str | None) -> int:
    """Write the table of photographs, with paths relative to `work`, and the list of rejected files. Return the number of these."""
    from changepair.tasks.ingestion.ingest import IngestionFolders, ingest_folder

    folder = photographs if is_remote(photographs) else photographs.resolve()
    link = work / DATASET
    if not is_remote(folder):
        link.unlink(missing_ok=True)
        link.symlink_to(folder, target_is_directory=True)
    places = IngestionFolders(work / "written", work / "manifests", work / "checkpoints")
    ingested = ingest_folder(DATASET, folder, layout="photographs", licence=licence or UNSTATED, places=places)
    rows = [
        replace(row, image=_relative(row.image, folder, work))
        for row in read_rows(work / "manifests" / f"{DATASET}.parquet", PictureRow, MADE_BY)
        if row.is_normal_training
    ]
    write_rows(work / PHOTOGRAPHS_NAME, PictureRow, rows)
    shutil.copyfile(work / "manifests" / f"{DATASET}.rejected.csv", work / REJECTED_NAME)
    return ingested.rejected


def _relative(image: str, folder: Path, work: Path) -> str:
    """Return the path of a photograph from `work`, where a link leads to the folder. An address in a store stays unchanged."""
    if is_remote(folder) and not Path(image).is_relative_to(work):
        return image
    path = Path(image)
    return (Path(DATASET) / path.relative_to(folder) if path.is_relative_to(folder) else path.relative_to(work)).as_posix()


def _tables(work: Path, rows: list[PictureRow]) -> Any:
    """Write the tables that synthesis reads: the photographs, which are also the textures, and no annotated object."""
    from changepair.tasks.ingestion.objects.table import ObjectRow, write_objects
    from changepair.tasks.sampling.episodes import SourceFiles

    files = SourceFiles(work / "sources.parquet", work / "textures.parquet", work / "objects.parquet")
    for file in (files.sources, files.textures):
        if not file.is_file() or read_rows(file, PictureRow, MADE_BY) != rows:
            write_rows(file, PictureRow, rows)
    write_objects(files.objects, table_of(ObjectRow, []))
    return files


def _about(settings: SynthesisSettings, rows: list[PictureRow]) -> dict[str, Any]:
    """Describe the build by everything that its bytes depend on."""
    code = code_of(SYNTHESIS, root=ROOT)
    modules = json.dumps([dict(code.modules), dict(code.files)], sort_keys=True)
    pictures = json.dumps([[row.image, row.sha256, row.licence] for row in rows])
    return {
        "changepair": version("changepair"),
        "code": hashlib.sha256(modules.encode()).hexdigest()[:16],
        "packages": {name: _version(name) for name in code.packages},
        "settings": json.loads(json.dumps(asdict(settings))),
        "photographs": {"count": len(rows), "sha256": hashlib.sha256(pictures.encode()).hexdigest()},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _make(
    settings: SynthesisSettings, inputs: Any, missing: list[int], shards: Any, work: Path, workers: int, report: Callable[[int], None]
) -> None:
    """Make the missing shards in processes, whose current folder is `work`."""
    if not missing:
        return
    pool = ProcessPoolExecutor(min(workers, len(missing)), mp_context=get_context("spawn"), initializer=_enter, initargs=(work,))
    others = set(active_children())
    try:
        futures = [pool.submit(_shard, settings, inputs, number, shards) for number in missing]
        for done, future in enumerate(as_completed(futures), 1):
            future.result()
            report(done)
    except BaseException as error:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(active_children()) - others:
            process.terminate()
        if isinstance(error, BadInput):
            raise BadInput(f"{error}; with this command, --kinds sets the shares") from error
        raise
    finally:
        pool.shutdown()


def _enter(work: Path) -> None:
    stopping.die_with_parent()
    os.chdir(work)


def _shard(settings: SynthesisSettings, inputs: Any, number: int, shards: Any) -> int:
    from changepair.tasks.synthesis.synthesize import make_shard

    return make_shard(settings, inputs, number, shards)


def read_build(folder: Path) -> dict[str, Any] | None:
    """Read build.json of a folder of pairs. Return None if a pipeline has made the pairs."""
    file = folder / BUILD_NAME
    if not file.is_file():
        return None
    try:
        about: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{file}: is no JSON ({in_short(error)}); copy or make the pairs again") from error
    return about
