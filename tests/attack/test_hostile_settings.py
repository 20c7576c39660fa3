"""pipelines.yaml as nobody should write it: read, or refused in one line with the key; and what is accepted, DVC accepts."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, SMALL
from dvc.dependency.param import read_param_file
from dvc.fs import LocalFileSystem
from dvc.schema import COMPILED_MULTI_STAGE_SCHEMA
from dvc.utils.serialize import load_yaml, parse_yaml
from dvc.utils.serialize._common import ParseError
from hostile import LONGEST, ODD, TRIES, attack, changed, damaged
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from flows.plan import dvc_yaml, planned
from flows.settings.pipelines import read_pipelines
from tasks.common.errors import BadInput

pytestmark = pytest.mark.attack
LEVELS = (b"%c: &%c [%s]\n" % (98 + level, 98 + level, b",".join([b"*%c" % (97 + level)] * 9)) for level in range(9))
BILLION = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(LEVELS)
"""Aliases of aliases, a few lines long, that come to a billion values."""
OWN = (ROOT / "pipelines.yaml").read_bytes()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parts").mkdir()


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
        assert isinstance(theirs, Exception) or ": not YAML" not in str(error), f"DVC reads it: {error}"
        raise
    assert not isinstance(theirs, Exception), f"DVC does not read it: {theirs}"
    text = dvc_yaml(stages)
    COMPILED_MULTI_STAGE_SCHEMA(parse_yaml(text, "dvc.yaml"))
    assert len({stage.name for stage in stages}) == len(stages)
    outs = [out for stage in stages for out in (*stage.outs, *stage.in_git, *stage.metrics)]
    assert len(set(outs)) == len(outs) and all(len(part.encode()) < 250 for out in outs for part in out.split("/"))
    for stage in stages:
        assert all(dep and not any(out.startswith(f"{dep}/") or out == dep for out in stage.outs) for dep in stage.deps), stage
        found = read_param_file(LocalFileSystem(), str(file), list(stage.params), flatten=True) if stage.params else {}
        assert found.keys() == set(stage.params), (stage.name, set(stage.params) - found.keys())


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
        content = copy.deepcopy(random_.choice((SMALL, yaml.safe_load(OWN))))
        for _ in range(times):
            content = changed(content, random_)
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=random_.random() < 0.5).encode()

    attack(f"settings, {times} changes", draw, read)


def test_a_value_at_every_key() -> None:
    """One key after another, each with values that it is not for."""
    paths = [(), *_paths(SMALL)]

    def draw(random_: random.Random) -> bytes:
        content: Any = copy.deepcopy(SMALL)
        path = random_.choice(paths)
        inner = content
        for key in path[:-1]:
            inner = inner[key]
        if path:
            inner[path[-1]] = random_.choice(ODD)
        return yaml.safe_dump(content, sort_keys=False).encode()

    attack("settings, a value at each key", draw, read)


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
    content: Any = copy.deepcopy(data.draw(st.sampled_from((SMALL, yaml.safe_load(OWN)))))
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
    with pytest.raises(BadInput, match=r"^pipelines.yaml: more than 100 levels of lists and sections$"):
        read_pipelines(_written(f"a:\n{level * count}x\n"))


def test_indentation_without_end() -> None:
    ladder = "".join(f"{' ' * level}a:\n" for level in range(1000))
    with pytest.raises(BadInput, match="more than 100 levels"):
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


def _paths(tree: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path for key, value in inner for path in ((*at, key), *_paths(value, (*at, key)))]
