"""pipelines.yaml as nobody should write it: read, or refused in one line with the key; and what is accepted, DVC accepts."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, SMALL, with_every_key
from dvc.repo import Repo
from dvc.utils.serialize import load_yaml
from dvc.utils.serialize._common import ParseError
from hostile import LONGEST, ODD, TRIES, attack, changed, damaged
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from changepair.flows.plan import dvc_yaml, planned
from changepair.flows.settings.overriding import override, read_settings
from changepair.flows.settings.pipelines import read_pipelines
from changepair.tasks.common.errors import BadInput

pytestmark = pytest.mark.attack
LEVELS = (b"%c: &%c [%s]\n" % (98 + level, 98 + level, b",".join([b"*%c" % (97 + level)] * 9)) for level in range(9))
BILLION = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(LEVELS)
"""Aliases of aliases, a few lines long, that come to a billion values."""
OWN = (ROOT / "pipelines.yaml").read_bytes()
EVERY = with_every_key()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parts").mkdir()
    Repo.init(no_scm=True).close()


def read(content: bytes) -> None:
    """Reads it as every command does, plans its stages, and asks DVC: what it reads we read, and what we accept it accepts and finds."""
    file = Path("pipelines.yaml")
    file.write_bytes(content)
    try:
        theirs: Any = load_yaml(str(file))
    except (ParseError, UnicodeDecodeError, ValueError) as error:
        theirs = error
    try:
        read_pipelines(file)
        stages = planned()
    except BadInput as error:
        assert str(error).startswith("pipelines.yaml"), error
        assert isinstance(theirs, Exception) or ": invalid YAML" not in str(error), f"DVC reads it: {error}"
        raise
    assert not isinstance(theirs, Exception), f"DVC does not read it: {theirs}"
    text = dvc_yaml(stages)
    Path("dvc.yaml").write_text(text)
    with Repo() as repo:
        repo.index.check_graph()  # no two write the same, and none waits for itself
    assert len({stage.name for stage in stages}) == len(stages)
    outs = [out for stage in stages for out in (*stage.outs, *stage.in_git, *stage.metrics)]
    assert len(set(outs)) == len(outs) and all(len(part.encode()) < 250 for out in outs for part in out.split("/"))
    for stage in stages:
        assert all(dep and not any(out.startswith(f"{dep}/") or out == dep for out in stage.outs) for dep in stage.deps), stage


def test_bytes_of_it() -> None:
    attack("settings, bytes", lambda draw: damaged(OWN, draw), read)


def test_another_encoding_or_none() -> None:
    def draw(random_: random.Random) -> bytes:
        text = OWN.decode().replace("quickstart", random_.choice(("quickstart", "caf\u00e9", "\u0416")))
        return text.encode(random_.choice(("utf-16", "utf-8-sig", "utf-16-le", "cp1252", "utf-32", "cp037")), errors="replace")

    attack("settings, encodings", draw, read)


@pytest.mark.parametrize("times", [1, 3])
def test_values_of_it(times: int) -> None:
    def draw(random_: random.Random) -> bytes:
        content = copy.deepcopy(random_.choice((SMALL, EVERY, yaml.safe_load(OWN))))
        for _ in range(times):
            content = changed(content, random_)
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=random_.random() < 0.5).encode()

    attack(f"settings, {times} changes", draw, read)


def test_a_value_at_every_key() -> None:
    """One key after another, each with values that it is not for."""
    paths = [(), *_paths(EVERY)]

    def draw(random_: random.Random) -> bytes:
        content: Any = copy.deepcopy(EVERY)
        path = random_.choice(paths)
        inner = content
        for key in path[:-1]:
            inner = inner[key]
        if path:
            inner[path[-1]] = random_.choice(ODD)
        return yaml.safe_dump(content, sort_keys=False).encode()

    attack("settings, a value at each key", draw, read)


PLACES = (
    ".", "..", "/", "~", "~/x", "~nobody-of-that-name/x", "data", "data/", "./data/../data", "data/pairs", "data/pairs/small",
    "data/models/small", "data/models/small/candidate", "data/models/small/candidate/metauas", "data/models/small/in-use",
    "data/models/small/candidate/metauas/model.safetensors", "data/code", "data/code/sample_small.json", "data/inpainters/small",
    "data/episodes/small.parquet", "data/evaluation/small/report.html", "pipelines.yaml", "dvc.yaml", "dvc.lock", "x.dvc", "flows",
    ".dvc", ".git", "parts", "parts/x.csv", "s3://b/x", "s3://", "remote://x/y", "file:///x", "http://127.0.0.1:9/x", "memory://x",
    "github://x:y@main/z", "nothing://x",
)  # fmt: skip
"""Files and folders that a setting might name, most of them the project's own."""


def test_a_place_at_every_key() -> None:
    """What is named there is read by a stage, and may be what that stage waits for."""
    paths = [path for path, value in _values(EVERY) if value is None or isinstance(value, str)]
    Path("~").mkdir()  # which no stage is to read where the user's own folder is meant

    def draw(random_: random.Random) -> bytes:
        content: Any = copy.deepcopy(EVERY)
        *above, key = random_.choice(paths)
        inner = content
        for one in above:
            inner = inner[one]
        inner[key] = random_.choice(PLACES)
        return yaml.safe_dump(content, sort_keys=False).encode()

    def attempt(content: bytes) -> None:
        read(content)
        assert not any(dep.startswith("~/") for stage in planned() for dep in stage.deps)

    attack("settings, a place at each key", draw, attempt)


WORDS = (
    "", "[", "[[", "'", '"', "a: b: c", "&a [*a]", "*a", "!!python/object/apply:os.system [ls]", "!!binary x", "!!set {a}", "!!omap [a]",
    "!x y", "9" * 5000, "2020-13-45", "2020-01-01 99:99:99", "%YAML 1.2", "--- a\n--- b", "\t", "# c", "|", "@", "{a: 1, a: 2}", "<<: [1]",
    "{<<: x}", "\0", "\ud800", "\x85", "[" * 101, "[" * 100_000, "{a: " * 200, "64", "64 # c", "[1, 2]", "{}", "metauas",
)  # fmt: skip
"""Values as they are given to a command."""


def test_what_is_set_by_a_command_or_for_a_run() -> None:
    """A key and a value reach pipelines.yaml from `changepair set`, and from a run's parameters, which anybody gives who may start one."""
    values = {".".join(map(str, path)): value for path, value in _values(EVERY["pipelines"]["small"])}

    def draw(random_: random.Random) -> tuple[str, str | dict[str, Any]]:
        pipeline = "small" if random_.random() < 0.95 else random_.choice(("", "x", "\n", "\0"))
        key = own = random_.choice([*values])
        if random_.random() < 0.2:
            odd = ("", ".", "a.", "..", f"{key}.", f".{key}", f"{key}.x", f"{key}\n", "\0", "a: b", "'", "{", f"{key}: 1", ".a" * 3000)
            key = random_.choice(odd)
        match random_.choice(("words", "words", "value", "of its kind", "deep", "no pair")):
            case "words":
                return pipeline, f"{key}={random_.choice(WORDS)}"
            case "no pair":
                return pipeline, random_.choice(("", "=", "x", "=x", key, f"{key}=", "\n=1"))
            case "deep":
                value: Any = 1
                for _ in range(random_.choice((99, 101, 500, 20_000))):
                    value = random_.choice(([value], {"a": value}))
                return pipeline, {key: value}
            case "of its kind":
                like = [value for value in values.values() if type(value) is type(values[own])]
                return pipeline, {key: random_.choice(like)}
            case _:
                return pipeline, {key: random_.choice(ODD)}

    def attempt(given: tuple[str, str | dict[str, Any]]) -> None:
        file = Path("pipelines.yaml")
        before = yaml.safe_dump(EVERY, sort_keys=False)
        file.write_text(before)
        pipeline, what = given
        try:
            told = override(pipeline, read_settings([what]) if isinstance(what, str) else what)
        except BadInput:
            assert file.read_text() == before
            raise
        assert not any("\n" in line for line in told)
        read(file.read_bytes())

    attack("settings, set", draw, attempt)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.sampled_from(ODD),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(
    max_examples=TRIES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], phases=set(Phase) - {Phase.explain}
)
@given(data=st.data())
def test_we_accept_what_dvc_accepts_and_the_reverse(data: st.DataObject) -> None:
    """Up to three keys of one file have another value, another name, or are gone."""
    content: Any = copy.deepcopy(data.draw(st.sampled_from((SMALL, EVERY, yaml.safe_load(OWN)))))
    for _ in range(data.draw(st.integers(1, 3))):
        paths = _paths(content)
        if not paths:
            break
        *above, key = data.draw(st.sampled_from(paths))
        inner = content
        for one in above:
            inner = inner[one]
        match data.draw(st.sampled_from(("value", "value", "gone", "name"))):
            case "value":
                inner[key] = data.draw(VALUES)
            case "name" if isinstance(inner, dict):
                inner[data.draw(st.text(max_size=12) | st.integers() | st.none() | st.booleans())] = inner.pop(key)
            case _:
                del inner[key]
    try:
        read(yaml.safe_dump(content, sort_keys=False, allow_unicode=data.draw(st.booleans())).encode("utf-8", "surrogatepass"))
    except BadInput as error:
        assert "\n" not in str(error) and len(str(error)) < LONGEST


@pytest.mark.parametrize("count", [101, 5_000, 100_000])
@pytest.mark.parametrize("level", ["[", "{a: ", "- ", "? ", "- [", "[\n"])
def test_lists_and_sections_in_one_another_without_end(level: str, count: int) -> None:
    """A hundred thousand end the process where the library reads them, and a thousand are more than Python's own calls in one another."""
    with pytest.raises(BadInput, match=r"^pipelines.yaml: more than 100 nested levels of lists and sections$"):
        read_pipelines(_written(f"a:\n{level * count}x\n"))


def test_indentation_without_end() -> None:
    ladder = "".join(f"{' ' * level}a:\n" for level in range(1000))
    with pytest.raises(BadInput, match="more than 100 nested levels"):
        read_pipelines(_written(ladder))
    with pytest.raises(BadInput, match="unknown key"):  # and a hundred are read
        read_pipelines(_written("".join(f"{' ' * level}a:\n" for level in range(100))))


def _written(text: str) -> Path:
    file = Path("pipelines.yaml")
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    "content",
    [
        b"", b"---\n", b"a: &a [*a]\n", b"enabled: " + b"[" * 5000, b"a: " + b"9" * 5000, b"{" * 100, b"\xff\xfe", b"\0" * 10,
        b"a: !!python/object:os.system x", BILLION, b"a: 1\na: 2\n", b"<<<<<<< ours\na: 1\n=======\na: 2\n>>>>>>> theirs\n",
        b"a: 2020-13-45\n", b"? [a, b]\n: c\n", b"- a\n- b\n", b"word\n",
    ],
)  # fmt: skip
def test_what_is_no_settings_file(content: bytes) -> None:
    with pytest.raises(BadInput) as caught:
        read(content)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1500


def _values(tree: Any, at: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], Any]]:
    """Lists keys and values of a tree, at every level."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [entry for key, value in inner for entry in (((*at, key), value), *_values(value, (*at, key)))]


def _paths(tree: Any) -> list[tuple[Any, ...]]:
    return [path for path, _value in _values(tree)]
