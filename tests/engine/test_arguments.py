"""Annotations of a handler's parameters: pydantic's models and paths work, and unusable annotations are rejected."""

from __future__ import annotations

import collections
import enum
import fractions
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, Optional, Self, TypedDict, TypeVar
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest

from jobqueue import App, HandlerError, Job
from jobqueue.engine.handlers import PayloadMismatch
from tests.support.executor import claimed

pytestmark = pytest.mark.slow

T = TypeVar("T")


class Item(pydantic.BaseModel):
    sku: str
    count: int = pydantic.Field(gt=0)


class Order(pydantic.BaseModel):
    items: list[Item]
    due: date | None = None
    note: Annotated[str, pydantic.StringConstraints(strip_whitespace=True)] = ""


class Strict(pydantic.BaseModel, strict=True, extra="forbid"):
    due: date
    tags: set[str]
    wait: timedelta
    price: Decimal
    id: UUID


class Page(pydantic.BaseModel, Generic[T]):
    rows: list[T]


class Numbers(pydantic.RootModel[list[int]]): ...


class Node(pydantic.BaseModel):
    children: list[Node] = []


class Level(pydantic.BaseModel):
    name: str = pydantic.Field(alias="level-name")


class Picky(pydantic.BaseModel):
    a: int

    @pydantic.model_validator(mode="after")
    def odd(self) -> Picky:
        if self.a == 13:
            raise KeyError(self.a)
        if self.a % 2 == 0:
            raise ValueError("an even number")
        return self


@pydantic.dataclasses.dataclass
class Validated:
    a: int = pydantic.Field(gt=0)


class MyPath(PurePosixPath): ...


class NotEverywhere(PurePosixPath):
    def __new__(cls, *_: Any) -> Self:
        raise OSError("not here")


class Plain:
    a: int
    b: str


@dataclass
class Wrapped:
    order: Order
    at: Path | None = None


@dataclass
class Deep:
    plain: dict[str, list[Plain]]


@attrs.define
class Attrs:
    path: Path


class Typed(TypedDict, total=False):
    order: Order
    path: Path


class Named(NamedTuple):
    path: Path
    order: Order | None = None


class Tree(msgspec.Struct):
    children: list[Tree] = []
    path: Path | None = None


class BadTree(msgspec.Struct):
    children: list[BadTree] = []
    plain: Plain | None = None


class Color(enum.Enum):
    RED = "red"


Name = NewType("Name", str)


def handler_of(annotation: Any, default: Any = ...) -> Any:
    def handler(x): ...

    handler.__annotations__ = {"x": annotation}
    if default is not ...:
        handler.__defaults__ = (default,)
    app = App()
    app.handler("test")(handler)
    return app.handlers["test"]


def converted(annotation: Any, value: Any) -> Any:
    document = msgspec.json.encode({"x": value}).decode()
    return handler_of(annotation).arguments(claimed(document))["x"]


def mismatch(annotation: Any, value: Any) -> str:
    with pytest.raises(PayloadMismatch) as refused:
        converted(annotation, value)
    return str(refused.value).removeprefix("the payload does not fit the handler: ")


ORDER = {"items": [{"sku": "pen", "count": "2"}], "due": "2030-01-31", "note": " x "}
MADE = Order(items=[Item(sku="pen", count=2)], due=date(2030, 1, 31), note="x")
STRICT = {"due": "2030-01-31", "tags": ["a"], "wait": "PT5S", "price": "1.10", "id": "0198c7a4-0000-7000-8000-000000000000"}


@pytest.mark.parametrize(
    ("annotation", "value", "result"),
    [
        (Order, ORDER, MADE),
        (Order | None, None, None),
        (Optional[Order], ORDER, MADE),  # noqa: UP045 - the older form
        (list[Order], [ORDER, ORDER], [MADE, MADE]),
        (dict[str, Order], {"a": ORDER}, {"a": MADE}),
        (tuple[Order, int], [ORDER, 1], (MADE, 1)),
        (dict[str, list[Order | None]], {"a": [None, ORDER]}, {"a": [None, MADE]}),
        (Annotated[Order, "of a customer"], ORDER, MADE),
        (list[Annotated[Order | None, "maybe"]], [ORDER, None], [MADE, None]),
        (Page[Item], {"rows": [{"sku": "a", "count": 1}]}, Page[Item](rows=[Item(sku="a", count=1)])),
        (Numbers, [1, 2], Numbers([1, 2])),
        (Node, {"children": [{"children": []}]}, Node(children=[Node()])),
        (Level, {"level-name": "a"}, Level(**{"level-name": "a"})),
        (Numbers, [10**30], Numbers([10**30])),
        (Wrapped, {"order": ORDER, "at": "a"}, Wrapped(MADE, Path("a"))),
        (Typed, {"order": ORDER, "path": "a"}, {"order": MADE, "path": Path("a")}),
        (Named, ["a", ORDER], Named(Path("a"), MADE)),
        (Path, "/a/../b", Path("/a/../b")),
        (PurePath, "a", PurePath("a")),
        (PureWindowsPath, r"C:\a", PureWindowsPath(r"C:\a")),
        (MyPath, "é ☃", MyPath("é ☃")),
        (Path | None, None, None),
        (list[Path], ["a", ""], [Path("a"), Path()]),
        (dict[str, Path], {"a": "b"}, {"a": Path("b")}),
        (dict[Path, int], {"a": 1}, {Path("a"): 1}),
        (set[Path], ["a", "a"], {Path("a")}),
        (Attrs, {"path": "a"}, Attrs(Path("a"))),
        (Tree, {"children": [{"path": "a"}]}, Tree([Tree(path=Path("a"))])),
        (object, {"a": [1]}, {"a": [1]}),
        (list[object], [1, "a", None], [1, "a", None]),
        (Name, "a", "a"),
        (Color, "red", Color.RED),
        (Literal["a"], "a", "a"),
        (T, [1], [1]),
    ],
    ids=str,
)
def test_a_value_is_converted_to_the_annotation(annotation: Any, value: Any, result: Any) -> None:
    if value == [10**30]:
        made = handler_of(annotation).arguments(claimed(f'{{"x": [{10**30}]}}'))["x"]
    else:
        made = converted(annotation, value)
    assert made == result
    assert type(made) is type(result)


def test_a_strict_model_accepts_the_json_forms_of_its_types() -> None:
    made = converted(Strict, STRICT)
    assert (made.due, made.tags, made.wait, made.price) == (date(2030, 1, 31), {"a"}, timedelta(seconds=5), Decimal("1.10"))


@pytest.mark.parametrize("annotation", [Order, Path, list[Order], Order | None, dict[str, Path]], ids=str)
def test_a_default_is_left_to_the_function(annotation: Any) -> None:
    default = object()
    assert handler_of(annotation, default).arguments(claimed("{}")) == {}
    assert handler_of(annotation, None).arguments(claimed("{}")) == {}


def test_a_model_is_combined_with_other_parameters() -> None:
    app = App()

    @app.handler("test")
    def handler(order: Order, job: Job, *, into: Path = Path("out"), keep: bool = False) -> None: ...

    values = app.handlers["test"].arguments(claimed(msgspec.json.encode({"order": ORDER, "keep": True}).decode()))
    assert values.keys() == {"order", "job", "keep"}
    assert values["order"] == MADE


@pytest.mark.parametrize(
    ("annotation", "value", "reason"),
    [
        (Order, {}, "items: Field required - at `$.x`"),
        (Order, 5, "Input should be an object - at `$.x`"),
        (Order, None, "Input should be an object - at `$.x`"),
        (Order, {"items": [{"sku": "a", "count": 0}]}, "items.0.count: Input should be greater than 0 - at `$.x`"),
        (Order, {"items": [{"count": "x"}]}, "items.0.sku: Field required; items.0.count: Input should be a valid integer"),
        (list[Order], [ORDER, {"items": 1}], "items: Input should be a valid array - at `$.x[1]`"),
        (dict[str, Order | None], {"a": 1}, "Input should be an object - at `$.x[...]`"),
        (Wrapped, {"order": {}}, "items: Field required - at `$.x.order`"),
        (Strict, {**STRICT, "more": 1}, "more: Extra inputs are not permitted - at `$.x`"),
        (Picky, {"a": 2}, "Value error, an even number - at `$.x`"),
        (
            Numbers,
            ["a", "b", "c", "d", "e", "f", "g"],
            "4: Input should be a valid integer, unable to parse string",
        ),
        (Path, 5, "Expected `str`, got `int` - at `$.x`"),
        (Path, None, "Expected `str`, got `null` - at `$.x`"),
        (Path, True, "Expected `str`, got `bool` - at `$.x`"),
        (Path | None, 1.5, "Expected `str`, got `float` - at `$.x`"),
        (list[Path], ["a", []], "Expected `str`, got `array` - at `$.x[1]`"),
        (dict[str, Path], {"a": {}}, "Expected `str`, got `object` - at `$.x[...]`"),
    ],
    ids=str,
)
def test_the_error_for_a_mismatch_has_its_place(annotation: Any, value: Any, reason: str) -> None:
    message = mismatch(annotation, value)
    assert reason in message
    assert "\n" not in message
    assert "pydantic.dev" not in message


def test_a_mismatch_lists_only_the_first_of_many_errors() -> None:
    message = mismatch(Numbers, list("abcdefg"))
    assert message.count("Input should be") == 5
    assert message.endswith("; ... - at `$.x`")


def test_a_model_that_raises_another_error_is_a_mismatch_too() -> None:
    assert mismatch(Picky, {"a": 13}) == "KeyError"


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        (Plain, "parameter 'x': jobqueue cannot convert JSON to Plain: annotate the parameter with a dataclass,"),
        (Plain | None, "cannot convert JSON to Plain"),
        (list[Plain], "cannot convert JSON to Plain"),
        (dict[str, tuple[int, Plain]], "cannot convert JSON to Plain"),
        (Annotated[Plain, 1], "cannot convert JSON to Plain"),
        (Deep, "cannot convert JSON to Plain"),
        (BadTree, "cannot convert JSON to Plain"),
        (list[list[Deep | None]], "cannot convert JSON to Plain"),
        (complex, "cannot convert JSON to complex"),
        (fractions.Fraction, "cannot convert JSON to Fraction"),
        (range, "cannot convert JSON to range"),
        (re.Pattern, "cannot convert JSON to Pattern"),
        (type, "cannot convert JSON to type"),
        (Callable[[int], int], "cannot convert JSON to Callable"),
        (Iterable[int], "cannot convert JSON to Iterable"),
        (Iterator, "cannot convert JSON to Iterator"),
        (collections.deque, "cannot convert JSON to deque"),
        (os.PathLike, "cannot convert JSON to PathLike"),
        (WindowsPath, "cannot convert JSON to WindowsPath"),
        (NotEverywhere, "cannot convert JSON to NotEverywhere"),
        (Validated, "jobqueue cannot validate Validated, a pydantic dataclass: make it a pydantic.BaseModel"),
        (list[Validated | None], "jobqueue cannot validate Validated"),
        (pydantic.SecretStr, "cannot convert JSON to SecretStr"),
        (Order | Item, "a payload cannot be converted to this signature"),
        (str | Path, "a payload cannot be converted to this signature"),
    ],
    ids=str,
)
@pytest.mark.parametrize("default", [..., None], ids=["required", "optional"])
def test_a_class_without_a_json_form_is_rejected_at_registration(annotation: Any, reason: str, default: Any) -> None:
    with pytest.raises(HandlerError) as refused:
        handler_of(annotation, default)
    assert str(refused.value).startswith("test: ")
    assert reason in str(refused.value)


def test_an_unresolvable_annotation_within_a_class_is_rejected_at_registration() -> None:
    class Broken(msgspec.Struct):
        a: Missing  # type: ignore[name-defined]  # noqa: F821 - that is the point

    with pytest.raises(HandlerError, match=r"test: .*name 'Missing' is not defined"):
        handler_of(list[Broken])


def test_pydantic_is_not_loaded_for_an_application_without_it() -> None:
    program = """
import sys, pathlib, jobqueue
app = jobqueue.App()
@app.handler("a")
def a(path: pathlib.Path, n: int): ...
sys.exit("pydantic" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
