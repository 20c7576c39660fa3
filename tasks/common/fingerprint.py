"""Find the code that a result depends on, for DVC's stages, for checkpoints and for the promotion gate.

This code is what a module can run. It includes the modules of this project that it imports, directly or indirectly. It includes the data
files that they name and that lie next to them, and the installed versions of the packages that they compute with. A module is compared by
its syntax tree, so comments, docstrings and layout do not count. From flows/ only the given module counts, because the rest only runs the
work. A module of another package, such as a detector that it registers, counts in the same way. If its source code cannot be read, its
distribution's version counts.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.machinery import BYTECODE_SUFFIXES, EXTENSION_SUFFIXES
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PACKAGE = "changepair"
ROOT = Path(__file__).absolute().parents[3]  # folder that contains the running package: a checkout, or site-packages
LOCK = "requirements.lock"
REGISTRY = f"{PACKAGE}.tasks.detectors.registry"  # imports every detector; the roots select those that a result depends on
# Packages that run the work but do not compute its results.
CARRIERS = frozenset({"packaging", "prefect", "prefect_dask", "pydantic", "pydantic_core", "rich", "tqdm", "typing_extensions", "upath"})
# Names of distributions that differ from the package's name.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "mvtbdata": "mvtb-data",
    "open_clip": "open-clip-torch",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
}
BENEATH = {"scikit-image": ("scipy",), "open-clip-torch": ("timm",)}  # packages that others compute with
OPTIONAL = frozenset({"elpv-dataset", "mvtb-data"})  # sample pictures; a stage that needs them does not run without them
SHORT = 16  # hexadecimal digits of a hash that are kept


def is_checkout(folder: Path) -> bool:
    """Return whether a folder holds the source code of this package, which the stages of the folder then run."""
    return (folder / PACKAGE / "__init__.py").is_file()


def code_root() -> Path:
    """Return the folder whose package the stages of the current folder run: itself if it is a checkout, else where the package is
    installed.

    `python -m` finds a package in the current folder first.
    """
    here = Path.cwd()
    return here if is_checkout(here) else ROOT


@dataclass(frozen=True)
class Code:
    """The code that a result depends on, in parts, so that two results can be compared."""

    modules: Mapping[str, str]  # hash of each module's syntax tree, by module name
    files: Mapping[str, str]  # hash of each data file, by its path from the project's root
    # Installed version of each package, by its name in the lock. If the lock allows it, the text is that of the lock, with the versions for
    # other Pythons, so that results do not depend on the Python version.
    packages: Mapping[str, str]

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:SHORT]


def code_of(*roots: str, root: Path | None = None) -> Code:
    """Find the code that modules can run, given their dotted names in this or in an installed package.

    `root` is the folder that holds this package; None selects `code_root()`. Versions are compared with requirements.lock in the current
    folder.
    """
    homes = {PACKAGE: root or code_root()}
    waiting: list[str] = []
    packages: set[str] = set()
    for name in roots:
        package = name.partition(".")[0]
        home = homes.get(package) or _home(package)
        if home is None:
            packages.add(package)
            continue
        homes[package] = home
        waiting += [name] if package == PACKAGE else _modules(name, home)
    seen = dict.fromkeys(waiting)
    modules: dict[str, str] = {}
    files: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        package = name.partition(".")[0]
        file = _file(name, homes[package])
        if file is None:
            packages.add(package)
            continue
        parsed = _parsed(file, file.stat().st_mtime_ns)
        modules[name] = parsed.hash
        for word in parsed.words:
            beside = file.parent / word
            if beside.suffix != ".py" and beside.is_file():
                files[beside.relative_to(homes[package]).as_posix()] = hashlib.sha256(beside.read_bytes()).hexdigest()[:SHORT]
        for imported in (_absolute(one, name, file) for one in parsed.imports):
            package = imported.partition(".")[0]
            if package not in homes:
                packages.add(package)
                continue
            for module in _modules(imported, homes[package]):
                if module not in seen and module != REGISTRY and not module.startswith(f"{PACKAGE}.flows."):
                    seen[module] = None
                    waiting.append(module)
    return Code(dict(sorted(modules.items())), dict(sorted(files.items())), dict(sorted(_versions(packages).items())))


@dataclass(frozen=True)
class _Parsed:
    hash: str
    imports: tuple[str, ...]
    words: tuple[str, ...]  # strings in it that may be file names


@cache
def _parsed(file: Path, changed: int) -> _Parsed:
    """Parse a module. `changed` is its modification time, for the cache."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    imports = tuple(sorted(set(_imports(tree))))
    words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    for node in ast.walk(tree):  # drop every string that stands alone: docstrings, also those of fields
        for name in ("body", "orelse", "finalbody"):
            if isinstance(body := getattr(node, name, None), list):
                setattr(node, name, [item for item in body if not _is_text(item)])
    bare = hashlib.sha256(repr(_canonical(tree)).encode()).hexdigest()[:SHORT]
    return _Parsed(bare, imports, tuple(sorted(word for word in words if re.fullmatch(r"[\w-]+\.\w+", word))))


def _canonical(node: object) -> object:
    """Convert a syntax tree to tuples, without empty fields, because these differ between Python versions."""
    if isinstance(node, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(node) if value not in (None, [], ()))
        return (type(node).__name__, *((name, _canonical(value)) for name, value in fields))
    return tuple(map(_canonical, node)) if isinstance(node, list) else node


def _is_text(item: ast.AST) -> bool:
    return isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant) and isinstance(item.value.value, str)


def _imports(node: ast.AST) -> Iterator[str]:
    """List the dotted names that are imported, except for type checkers only, and packages whose files are read."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = "." * child.level + (child.module or "")
            yield base
            yield from (f"{base}.{alias.name}" if child.module else f"{base}{alias.name}" for alias in child.names)
        elif isinstance(child, ast.Call) and ast.unparse(child.func) == "resources.files" and isinstance(child.args[0], ast.Constant):
            yield str(child.args[0].value)
        yield from _imports(child)


def _modules(name: str, root: Path) -> Iterator[str]:
    """List the modules that run when a dotted name is imported. The name may refer to something in a module."""
    parts = name.split(".")
    first = 3 if parts[0] == PACKAGE else 1  # changepair, changepair.flows and changepair.tasks compute nothing
    for module in (".".join(parts[:end]) for end in range(first, len(parts) + 1)):
        try:
            file = _file(module, root)
        except FileNotFoundError:
            return
        if file is None or file.name != "__init__.py" or file.stat().st_size:
            yield module


def _absolute(imported: str, module: str, file: Path) -> str:
    """Return the full name of an import that is relative to a module."""
    level = len(imported) - len(imported.lstrip("."))
    parents = module.split(".")
    above = level - 1 if file.name == "__init__.py" else level
    return ".".join([*parents[: len(parents) - above], *filter(None, [imported[level:]])]) if level else imported


@cache
def _home(package: str) -> Path | None:
    """Find the folder that holds the source code of an installed package. Return None if it has none, or lies in several folders."""
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py") or not Path(spec.origin).is_file():
        return None
    file = Path(spec.origin).absolute()
    return file.parents[1] if file.name == "__init__.py" else file.parent


def _file(module: str, root: Path) -> Path | None:
    """Find the source code of a module. Return None if it is compiled. Raises FileNotFoundError if the module does not exist."""
    path = root.joinpath(*module.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    compiled = [path.with_name(f"{path.name}{suffix}") for suffix in (*EXTENSION_SUFFIXES, *BYTECODE_SUFFIXES)]
    if any(file.is_file() for file in (*compiled, *(path / f"__init__{suffix}" for suffix in BYTECODE_SUFFIXES))):
        return None
    raise FileNotFoundError(f"no module {module} in {root}")


@dataclass(frozen=True)
class Mismatch:
    """A package whose installed version differs from the lock."""

    package: str
    locked: str
    installed: str | None

    def __str__(self) -> str:
        return f"{self.package} {self.locked} is locked, but {self.installed or 'none'} is installed"


def mismatches(packages: Iterable[str], root: Path | None = None) -> list[Mismatch]:
    """List the packages whose installed version differs from requirements.lock in the folder `root`; None selects the current folder.

    A lock without a local version allows any: 2.15.0 allows 2.15.0+cu132. Lines whose marker excludes this environment do not count.
    """
    locked = _lock_of(root)
    found = []
    for name in sorted(set(packages)):
        here, installed = [line for line in locked.get(name, ()) if line.applies], _installed(name)
        if installed is None and name in OPTIONAL:
            continue
        if here and not any(line.allows(installed) for line in here):
            found.append(Mismatch(name, " or ".join(line.version for line in here), installed))
    return found


def versions_of(packages: Iterable[str], root: Path | None = None) -> dict[str, str]:
    """Return the version of each package as in `Code.packages`. `root` is the folder of requirements.lock; None selects the current
    folder."""
    names = sorted(set(packages))
    locked, other = _lock_of(root), {item.package for item in mismatches(names, root)}
    return {
        name: " ".join(sorted(line.version for line in locked[name]))
        if name in locked and name not in other and (name in OPTIONAL or any(line.applies for line in locked[name]))
        else _installed(name) or "not installed"
        for name in names
    }


def _versions(imported: set[str]) -> dict[str, str]:
    names = {distribution for name in imported - CARRIERS - sys.stdlib_module_names for distribution in _distributions(name)}
    return versions_of(names | {beneath for name in names for beneath in BENEATH.get(name, ())})


def _distributions(package: str) -> list[str]:
    """Return the names of the distributions that provide an imported package."""
    name = DISTRIBUTIONS.get(package, package).replace("_", "-").lower()
    if name in OPTIONAL or _installed(name) is not None:
        return [name]
    return [str(canonicalize_name(one)) for one in _installed_names().get(package, [name])]


_installed_names = cache(packages_distributions)


@dataclass(frozen=True)
class _Locked:
    version: str
    requirement: Requirement

    @property
    def applies(self) -> bool:
        """Whether its marker includes this environment."""
        return self.requirement.marker is None or self.requirement.marker.evaluate()

    def allows(self, installed: str | None) -> bool:
        return installed is not None and self.requirement.specifier.contains(installed, prereleases=True)


def _lock_of(root: Path | None) -> Mapping[str, tuple[_Locked, ...]]:
    file = (root or Path.cwd()) / LOCK
    return _locked(file, file.stat().st_mtime_ns) if file.is_file() else {}


@cache
def _locked(file: Path, changed: int) -> dict[str, tuple[_Locked, ...]]:
    """Read the lines of each package in the lock, which may have one for each of several Pythons. `changed` is for the cache."""
    lines: dict[str, tuple[_Locked, ...]] = {}
    for line in re.findall(r"^[a-z0-9._-]+(?:\[[^]]*\])?==[^\\\n]+", file.read_text(encoding="utf-8"), re.MULTILINE):
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        [specifier] = requirement.specifier
        lines[name] = (*lines.get(name, ()), _Locked(specifier.version, requirement))
    return lines


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
