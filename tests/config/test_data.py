import json
import math
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jscale.config.data import (
    Filled,
    fingerprint,
    from_data,
    read,
    to_data,
    told,
    with_defaults,
    write,
)
from jscale.config.diff import Difference
from jscale.config.load import load
from jscale.errors import ConfigError

HERE = sys.modules[__name__]
DIFFERENCE = "jscale.config.diff:Difference"


class Color(Enum):
    RED = 1


def scale(x: float) -> float:
    return x


@dataclass(frozen=True)
class Inner:
    size: int
    rate: float = 0.5
    color: Color = Color.RED
    scaled: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"size must not be negative, not {self.size}")


@dataclass(frozen=True)
class Outer:
    anything: Any
    inner: Inner = Inner(1)
    loss: Any = scale
    rules: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Thawed:
    size: int = 1


@dataclass(frozen=True)
class _Private:
    size: int = 1


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.just(scale)
)
inners = st.builds(Inner, st.integers(0, 9), st.floats(allow_nan=False), st.just(Color.RED))
keys = st.one_of(st.text(), st.integers(), st.tuples(st.text()))
values = st.recursive(
    scalars | inners,
    lambda below: st.one_of(
        st.lists(below, max_size=4).map(tuple), st.dictionaries(keys, below, max_size=4)
    ),
    max_leaves=12,
)
outers = st.builds(
    Outer, values, inners, rules=st.dictionaries(st.text() | st.just("type"), values)
)


@given(outers)
def test_what_is_written_is_read_back_equal_and_of_the_same_types(value: Outer) -> None:
    text = json.dumps(to_data(value), allow_nan=False)
    back = from_data(json.loads(text), [HERE])
    assert back == value and repr(back) == repr(value)


@given(outers, outers)
def test_fingerprints_agree_exactly_when_the_values_are_equal(a: Outer, b: Outer) -> None:
    assert fingerprint(a) == fingerprint(from_data(to_data(a), [HERE]))
    assert a == b or fingerprint(a) != fingerprint(b)


def test_fingerprint_is_the_same_in_another_process() -> None:
    code = (
        "from jscale.config.data import fingerprint\n"
        "from jscale.config.diff import Difference\n"
        "print(fingerprint(Difference('a', {'y': 1, 'x': (None, 'b')}, 0.5)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    value = Difference("a", {"x": (None, "b"), "y": 1.0}, 0.5)
    assert ran.stdout.strip() == fingerprint(value)
    assert fingerprint(replace(value, left=None)) != fingerprint(value)


def test_numbers_that_json_lacks_survive() -> None:
    back = from_data(to_data((math.inf, -math.inf, math.nan)))
    assert back[:2] == (math.inf, -math.inf) and math.isnan(back[2])


def test_a_mapping_of_another_kind_comes_back_as_a_dictionary() -> None:
    assert from_data(to_data(MappingProxyType({"a": 1}))) == {"a": 1}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (lambda x: x, "anything is .*<lambda>, which is no public name"),
        ([1], "anything is list .*write a tuple"),
        ({"a": (1, {2})}, "anything.a.1 is set"),
        (object(), "anything is object"),
        (Thawed(), "Thawed, which is not frozen"),
        (_Private(), "_Private, which is no public name"),
        (Path("x"), "which is no data for a recipe"),
        (int, "the class int"),
        (b"x", "anything is bytes"),
        (len, "which is no data"),
    ],
)
def test_what_is_no_data_is_refused_by_path(value: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        to_data(Outer(value))


def test_a_local_type_is_refused() -> None:
    @dataclass(frozen=True)
    class Local:
        pass

    with pytest.raises(ConfigError, match="no public name of its module"):
        to_data(Local())


def test_a_field_named_like_a_mark_is_refused() -> None:
    with pytest.raises(ConfigError, match="a field named type"):
        to_data(Marked("x"))


@dataclass(frozen=True)
class Marked:
    type: str


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("depth", [65, 900])
def test_depth_is_limited_both_ways(depth: int) -> None:
    with pytest.raises(ConfigError, match="nested too deeply"):
        from_data(nested(depth))
    value: Any = ()
    for _ in range(depth):
        value = (value,)
    with pytest.raises(ConfigError, match="nested deeper than 64"):
        to_data(value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"type": "os:system"}, "module 'os', which is not jscale's"),
        ({"type": "subprocess:Popen", "args": "x"}, "which is not jscale's"),
        ({"type": "jscale:difflib"}, "which is not jscale's"),
        ({"type": "jscalex.errors:UserError"}, "which is not jscale's"),
        ({"type": "jscale.errors:difflib"}, "no difflib in jscale.errors"),
        ({"type": "jscale.errors:difflib.x"}, "names no type"),
        ({"type": "jscale.errors:UserError"}, "is no frozen dataclass"),
        ({"type": "jscale.errors:did_you_mean"}, "no did_you_mean"),
        ({"type": "jscale.config.data:Path"}, "no Path in jscale.config.data"),
        ({"type": "jscale.config.data:_Reader"}, "no _Reader"),
        ({"type": "jscale.config.data:ConfigError"}, "no ConfigError in jscale.config.data"),
        ({"type": "jscale.config.nothing:X"}, "cannot import jscale.config.nothing"),
        ({"type": "jscale.__init__:X"}, "which is not jscale's"),
        ({"type": "jscale.errors.__builtins__:eval"}, "which is not jscale's"),
        ({"type": "jscale.errors:__builtins__"}, "no __builtins__"),
        ({"type": "../jscale.errors:X"}, "names no type"),
        ({"type": "jscale.errors/../x:X"}, "names no type"),
        ({"type": "jscale..errors:X"}, "names no type"),
        ({"type": "jscale.errors"}, "names no type"),
        ({"type": "jscale.errors:"}, "names no type"),
        ({"type": "jscale.errors:X\n"}, "names no type"),
        ({"type": "jscale." + "x" * 400 + ":X"}, "names no type"),
        ({"type": ["jscale.errors:X"]}, "names no type"),
        ({"type": None}, "names no type"),
        ({"type": DIFFERENCE, "path": "a", "left": 1}, "also needs right"),
        ({"type": DIFFERENCE, "path": "a", "left": 1, "rigth": 2}, "did you mean 'right'"),
        ({"type": DIFFERENCE, "path": 1, "left": 1, "right": 2}, "path must be str, got int 1"),
        ({"type": DIFFERENCE, "path": "a", "left": 1, "right": {"type": "os:x"}}, "right is of"),
        ({"type": DIFFERENCE, "__class__": 1}, "no field __class__"),
        ({"function": "os:system"}, "which is not jscale's"),
        ({"function": "jscale.config.data:from_data", "x": 1}, "mixes 'function'"),
        ({"function": "jscale.config.data:ConfigError"}, "no ConfigError"),
        ({"function": "jscale.config.data:_unique"}, "no _unique"),
        ({"enum": "jscale.errors:UserError", "member": "status"}, "is no enum"),
        ({"enum": "jscale.errors:UserError"}, "mixes 'enum'"),
        ({"float": "1.0"}, "is no float"),
        ({"float": {}}, "is no float"),
        ({"dict": {}}, "is no dict"),
        ({"dict": [[1]]}, "instead of an entry"),
        ({"dict": [[{}, 1]]}, "wrong or double key"),
        ({"dict": [[[{}], 1]]}, "wrong or double key"),
        ({"dict": [[1, 1], [1, 2]]}, "wrong or double key"),
        ({1: 2}, "which JSON cannot hold"),
        ({"a": {1, 2}}, "a is set"),
        ([0] * 200_001, "holds too much"),
    ],
    ids=lambda x: str(x)[:60],
)
def test_hostile_data_is_refused(data: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        from_data(data)


def test_only_allowed_modules_of_others_are_used() -> None:
    data = to_data(Inner(3))
    with pytest.raises(ConfigError, match="import that module yourself and allow it"):
        from_data(data)
    assert from_data(data, [HERE]) == Inner(3)


def test_a_type_checks_what_it_is_restored_with() -> None:
    with pytest.raises(ConfigError, match="^inner: size must not be negative, not -1$"):
        from_data({**to_data(Outer(1)), "inner": {**to_data(Inner(1)), "size": -1}}, [HERE])


def test_a_field_that_is_newer_than_the_data_takes_its_default_and_is_told(tmp_path: Path) -> None:
    data = to_data(Outer((Inner(1), Inner(2)), rules={"a": 1}))
    del data["anything"][1]["rate"], data["inner"]["color"], data["rules"]
    filled: list[Filled] = []
    value = from_data(data, [HERE], filled)
    assert value == Outer((Inner(1), Inner(2)))
    assert [(f.path, f.owner, f.value) for f in filled] == [
        ("rules", Outer, {}),
        ("anything.1.rate", Inner, 0.5),
        ("inner.color", Inner, Color.RED),
    ]
    (said,) = told(tmp_path, filled[1:2])
    assert said.endswith("is of an earlier version and takes the default of: anything.1.rate=0.5")
    assert told(tmp_path, []) == []
    filled.clear()
    assert from_data(to_data(value), [HERE], filled) == value and not filled


def test_a_recipe_file_of_an_older_version_is_loaded_with_a_note(tmp_path: Path) -> None:
    data = to_data(Outer(None))
    del data["inner"]["rate"]
    (tmp_path / "recipe.json").write_text(json.dumps(data))
    loaded = load(str(tmp_path), allow=[HERE])
    assert loaded.value == Outer(None)
    (note,) = loaded.notes
    assert note.endswith("takes the default of: inner.rate=0.5")
    assert loaded.origins["inner.rate"].startswith("default of Inner")
    assert loaded.origins["inner.size"].startswith("run folder")


def test_data_are_filled_for_comparing_only_where_the_types_agree() -> None:
    value = Outer((Inner(1, rate=0.25),), inner=Inner(2), rules={"a": Inner(3)})
    older = to_data(value)
    del older["anything"][0]["rate"], older["inner"]["rate"], older["rules"]["a"]["color"]
    wanted = to_data(value)
    wanted["anything"][0]["rate"] = 0.5  # what it was begun with, not what it is now
    assert with_defaults(older, value) == wanted
    assert with_defaults(to_data(value), value) == to_data(value)
    for other in (Outer(None, rules={}), Outer((Inner(1), Inner(2))), None, Thawed()):
        assert with_defaults(older["anything"], other) == older["anything"]
    foreign = {"type": "os:system", "a": 1}
    assert with_defaults(foreign, value) == foreign
    assert with_defaults({**older, "more": 1}, value)["more"] == 1


def test_data_of_an_older_version_is_refused_with_the_difference() -> None:
    data = to_data(Inner(1))
    data["sise"] = data.pop("size")
    del data["rate"]
    with pytest.raises(ConfigError) as caught:
        from_data(data, [HERE])
    assert str(caught.value) == (
        "Inner was written by another version: it has no field sise (did you mean 'size'?) "
        "and also needs size and also needs rate (its default is 0.5)"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ("[" * 100_000, "recursion"),
        ('{"a": 1, "a": 2}', "'a' stands there twice"),
        ("NaN", "NaN is no JSON"),
        ("1e999", "float inf, which JSON cannot hold"),
        ("1" * 5000, "4300"),
        ("\udcff", "is not text"),
    ],
    ids=["empty", "cut", "deep", "double", "nan", "infinite", "digits", "bytes"],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "recipe.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=said) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_a_file_is_read_back_and_a_missing_or_huge_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    with pytest.raises(ConfigError, match="cannot read .*recipe.json: No such file"):
        read(path)
    write(path, Outer(("x", None)))
    assert read(path, [HERE]) == Outer(("x", None))
    with path.open("ab") as file:
        file.truncate(2**24 + 1)
    with pytest.raises(ConfigError, match="larger than any recipe"):
        read(path)
