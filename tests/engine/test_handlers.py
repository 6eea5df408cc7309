import dataclasses
import functools
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import psycopg
import pytest

from jobqueue import App, Backoff, HandlerError, Job
from jobqueue.engine.handlers import Handler, PayloadMismatch
from jobqueue.job import MAX_NAME_LENGTH, MAX_RETRIES, MAX_TIMEOUT
from jobqueue.retry import DEFAULT_BACKOFF
from tests.support.executor import claimed

pytestmark = pytest.mark.slow


def registered(function: Any, **options: Any) -> Handler:
    app = App()
    app.handler("test", **options)(function)
    return app.handlers["test"]


def arguments(function: Callable[..., Any], payload: str) -> dict[str, Any]:
    return registered(function).arguments(claimed(payload))


def mismatch(function: Callable[..., Any], payload: str) -> str:
    with pytest.raises(PayloadMismatch) as refused:
        arguments(function, payload)
    return str(refused.value)


def refusal(function: Any, **options: Any) -> str:
    with pytest.raises(HandlerError) as refused:
        registered(function, **options)
    return str(refused.value)


class Address(msgspec.Struct):
    city: str
    zip_code: str = ""


@dataclasses.dataclass
class Order:
    number: int
    lines: list[tuple[str, float]]
    to: Address


class Fussy(msgspec.Struct):
    number: int

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ValueError("a number is positive")
        if self.number > 99:
            raise KeyError(self.number)


def greet(name: str, times: int = 1) -> None: ...


def nothing() -> None: ...


# -------------------------------------------------------------------------------------------------------- arguments out of payloads


def test_fields_become_keyword_arguments() -> None:
    assert arguments(greet, '{"name": "Ada", "times": 3}') == {"name": "Ada", "times": 3}


def test_an_absent_field_gets_the_default_of_the_function() -> None:
    assert arguments(greet, '{"name": "Ada"}') == {"name": "Ada"}


def test_a_mutable_default_is_neither_copied_nor_converted() -> None:
    shared: list[str] = []

    def collect(item: str, into: list[str] = shared, by: tuple[Any, ...] = (object(),)) -> list[str]:
        into.append(item)
        return [*into, str(len(by))]

    assert arguments(collect, '{"item": "a"}') == {"item": "a"}
    assert collect(**arguments(collect, '{"item": "a"}')) == ["a", "1"]
    assert shared == ["a"]
    assert collect(**arguments(collect, '{"item": "b", "into": ["c"]}')) == ["c", "b", "1"]
    assert shared == ["a"]


def test_fields_that_the_function_does_not_name_are_ignored() -> None:
    assert arguments(greet, '{"name": "Ada", "surname": "Lovelace", "job": 1}') == {"name": "Ada"}


def test_a_function_without_parameters_accepts_any_payload() -> None:
    for payload in ("null", "[1, 2]", '"text"', "17", '{"a": 1}', "[" * 5_000 + "]" * 5_000):
        assert arguments(nothing, payload) == {}


def test_each_call_has_separate_arguments() -> None:
    for function in (nothing, greet):
        handler = registered(function)
        first, second = (handler.arguments(claimed('{"name": "Ada"}')) for _ in range(2))
        assert first is not second


def test_parameters_without_annotation_accept_any_json() -> None:
    def anything(a, b=None) -> None: ...

    assert arguments(anything, '{"a": [1, {"x": null}], "b": 2.5}') == {"a": [1, {"x": None}], "b": 2.5}


def test_arguments_are_converted_to_the_annotated_types() -> None:
    def ship(
        order: Order,
        at: datetime,
        speed: Literal["slow", "fast"] = "slow",
        gift: bool | None = None,
        weight: Annotated[float, msgspec.Meta(gt=0)] = 1.0,
        *,
        labels: dict[str, set[int]] | None = None,
    ) -> None: ...

    payload = """{
        "order": {"number": 7, "lines": [["pen", 1.5], ["ink", 2]], "to": {"city": "Ulm", "floor": 3}},
        "at": "2030-01-31T08:00:00+00:00",
        "speed": "fast",
        "gift": null,
        "weight": 2,
        "labels": {"a": [1, 1, 2]}
    }"""
    assert arguments(ship, payload) == {
        "order": Order(7, [("pen", 1.5), ("ink", 2.0)], Address("Ulm")),
        "at": datetime(2030, 1, 31, 8, tzinfo=UTC),
        "speed": "fast",
        "gift": None,
        "weight": 2.0,
        "labels": {"a": {1, 2}},
    }


def test_annotations_may_be_strings() -> None:
    def later(to: "Address") -> None: ...

    assert arguments(later, '{"to": {"city": "Ulm"}}') == {"to": Address("Ulm")}


def test_a_method_is_called_on_its_object() -> None:
    class Mailer:
        def send(self, to: str) -> str:
            return f"sent to {to}"

    handler = registered(Mailer().send)
    assert handler.function(**handler.arguments(claimed('{"to": "Ada"}'))) == "sent to Ada"


# ------------------------------------------------------------------------------------------------------------------- the job itself


def test_a_parameter_that_is_annotated_as_a_job_receives_the_job() -> None:
    def handle(of: Job) -> None: ...

    fields = {"queue": "mail", "priority": 5, "attempt": 2, "created_at": 1_900_000_000.5}
    assert registered(handle).arguments(claimed('{"of": 1, "to": "Ada"}', **fields)) == {
        "of": Job(
            id="0198c7a4-0000-7000-8000-000000000000",
            kind="test",
            queue="mail",
            payload={"of": 1, "to": "Ada"},
            priority=5,
            attempt=2,
            max_retries=3,
            created_at=datetime(2030, 3, 17, 17, 46, 40, 500_000, tzinfo=UTC),
        )
    }


def test_a_parameter_named_job_without_annotation_receives_the_job() -> None:
    def handle(job) -> None: ...

    assert arguments(handle, "[1]")["job"].payload == [1]


def test_a_parameter_named_job_with_another_annotation_is_a_field() -> None:
    def hire(job: str) -> None: ...

    assert arguments(hire, '{"job": "baker"}') == {"job": "baker"}


def test_the_job_is_passed_with_other_arguments() -> None:
    def handle(name: str, job: Job, times: int = 1) -> None: ...

    values = registered(handle).arguments(claimed('{"name": "Ada"}', attempt=2))
    assert values.keys() == {"name", "job"}
    assert values["job"].attempt == 2


@pytest.mark.parametrize("annotation", [Job | None, Annotated[Job, "the one that runs"]], ids=str)
def test_a_job_is_recognized_in_a_wider_annotation(annotation: Any) -> None:
    def handle(job: annotation = None) -> None: ...

    assert isinstance(arguments(handle, "{}")["job"], Job)


# --------------------------------------------------------------------------------------------------------- payloads that do not fit


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ("{}", "missing required field `name`"),
        ('{"name": 1}', "Expected `str`, got `int` - at `$.name`"),
        ('{"name": "Ada", "times": "three"}', "Expected `int`, got `str` - at `$.times`"),
        ('{"name": "Ada", "times": null}', "Expected `int`, got `null` - at `$.times`"),
        ("[]", "Expected `object`, got `array`"),
        ("null", "Expected `object`, got `null`"),
    ],
)
def test_a_mismatch_names_the_field(payload: str, reason: str) -> None:
    message = mismatch(greet, payload)
    assert message.startswith("the payload does not fit the handler: ")
    assert reason in message


def test_a_mismatch_names_the_place_within_a_field() -> None:
    def ship(order: Order, speed: Literal["slow", "fast"] = "slow") -> None: ...

    order = '"order": {"number": 7, "lines": [["pen", 1.5], ["ink", %s]], "to": {"city": %s}}'
    assert "`$.order.lines[1][1]`" in mismatch(ship, "{" + order % ('"x"', '"Ulm"') + "}")
    assert "`$.order.to.city`" in mismatch(ship, "{" + order % ("1", "null") + "}")
    assert "`$.speed`" in mismatch(ship, "{" + order % ("1", '"Ulm"') + ', "speed": "warp"}')


def anything(value: Any) -> None: ...


def job_only(job: Job) -> None: ...


@pytest.mark.parametrize("function", [anything, job_only])
@pytest.mark.parametrize(
    "value",
    ["[" * 100_000 + "]" * 100_000, "1" + "0" * 5_000, "1" + "0" * 400 + ".5"],
    ids=["too deep", "too many digits", "too large"],
)
def test_json_that_python_cannot_hold_is_a_mismatch(function: Callable[..., Any], value: str) -> None:
    assert mismatch(function, f'{{"value": {value}}}')


def test_a_type_that_rejects_a_value_is_a_mismatch() -> None:
    def handle(fussy: Fussy) -> None: ...

    assert "a number is positive - at `$.fussy`" in mismatch(handle, '{"fussy": {"number": -1}}')


def test_a_type_that_raises_another_error_is_a_mismatch_too() -> None:
    def handle(fussy: Fussy) -> None: ...

    assert "KeyError" in mismatch(handle, '{"fussy": {"number": 100}}')


# --------------------------------------------------------------------------------------------------------------------- registration


def test_the_decorator_returns_the_function_unchanged() -> None:
    app = App()
    assert app.handler("greet")(greet) is greet
    assert app.handlers["greet"].function is greet


def test_options_and_their_defaults() -> None:
    plain = registered(greet)
    assert (plain.kind, plain.timeout, plain.max_retries, plain.backoff) == ("test", None, None, DEFAULT_BACKOFF)
    slow = registered(greet, timeout=30, max_retries=0, backoff=Backoff(base=5))
    assert (slow.timeout, slow.max_retries, slow.backoff) == (30, 0, Backoff(base=5))


async def over_async() -> None: ...


def test_the_mode_follows_the_function() -> None:
    assert registered(over_async).mode == "async"
    assert registered(nothing).mode == "thread"
    assert registered(nothing, cpu=True).mode == "process"


def test_a_function_may_serve_several_kinds() -> None:
    app = App()
    app.handler("b")(app.handler("a")(greet))
    assert app.handlers.keys() == {"a", "b"}


def test_a_kind_has_one_handler() -> None:
    app = App()
    app.handler("greet")(greet)
    with pytest.raises(HandlerError, match="kind 'greet' already has a handler"):
        app.handler("greet")
    assert app.handlers["greet"].function is greet


@pytest.mark.parametrize("kind", ["", "x" * (MAX_NAME_LENGTH + 1), None, 1, b"greet", greet], ids=lambda kind: repr(kind)[:10])
def test_a_kind_is_a_name(kind: Any) -> None:
    with pytest.raises(HandlerError, match=f"kind must be a string of 1 to {MAX_NAME_LENGTH} characters"):
        App().handler(kind)


def test_the_longest_kind() -> None:
    app = App()
    app.handler("x" * MAX_NAME_LENGTH)(greet)
    assert len(app.handlers) == 1


@pytest.mark.parametrize(
    "options",
    [{"timeout": 0.001}, {"timeout": MAX_TIMEOUT}, {"max_retries": 0}, {"max_retries": MAX_RETRIES}],
    ids=str,
)
def test_options_at_the_ends_of_their_ranges(options: dict[str, float]) -> None:
    handler = registered(greet, **options)
    assert {name: getattr(handler, name) for name in options} == options


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": 0},
        {"timeout": -1},
        {"timeout": MAX_TIMEOUT + 1},
        {"timeout": float("nan")},
        {"timeout": "30"},
        {"max_retries": -1},
        {"max_retries": MAX_RETRIES + 1},
        {"max_retries": 1.5},
        {"max_retries": "3"},
        {"backoff": 5},
    ],
    ids=str,
)
def test_options_out_of_range_are_rejected_by_name(options: dict[str, Any]) -> None:
    (option,) = options
    reason = refusal(greet, **options)
    assert reason.startswith("test: ")
    assert option in reason


def variable(*names: str) -> None: ...


def open_ended(**fields: str) -> None: ...


def positional(name: str, /) -> None: ...


def misspelled(name: "Strr") -> None: ...  # noqa: F821 - that is the point


def unsupported(value: int | Address | Order) -> None: ...


def no_type(value: 5 = 5) -> None: ...


def two_jobs(first: Job, second: Job) -> None: ...


def stream() -> Iterator[int]:
    yield 1


async def async_stream() -> Any:
    yield 1


def bare_decorator(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


def decorator(function: Callable[..., Any]) -> Callable[..., Any]:
    return functools.wraps(function)(bare_decorator(function))


def by_position(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)

    return wrapper


class Mailer:
    def send(self, to: str, times: "int" = 1) -> str:
        return f"sent to {to}" * times

    async def send_async(self, to: str, times: int = 1) -> str:
        return self.send(to, times)

    __call__ = send

    @classmethod
    def of_class(cls, to: str, times: int = 1) -> str:
        return cls().send(to, times)

    @staticmethod
    def of_nobody(to: str, times: int = 1) -> str:
        return Mailer.of_class(to, times)


class AsyncMailer:
    async def __call__(self, to: str, times: int = 1) -> str:
        return Mailer.of_nobody(to, times)


class Pair:
    def __call__(self) -> Iterator[int]:
        yield 1


@pytest.mark.parametrize(
    ("function", "mode"),
    [
        (Mailer().send, "thread"),
        (Mailer().send_async, "async"),
        (Mailer(), "thread"),
        (AsyncMailer(), "async"),
        (Mailer.of_class, "thread"),
        (Mailer.of_nobody, "thread"),
        (Mailer.__dict__["of_nobody"], "thread"),
        (staticmethod(Mailer().send_async), "async"),
        (functools.partial(Mailer().send), "thread"),
        (functools.partial(Mailer.send, Mailer()), "thread"),
        (functools.partial(Mailer().send_async, times=2), "async"),
        (functools.partial(functools.partial(AsyncMailer()), times=2), "async"),
        (decorator(Mailer().send), "thread"),
        (decorator(decorator(Mailer().send)), "thread"),
        (functools.partial(decorator(Mailer().send), times=2), "thread"),
        (functools.lru_cache(Mailer().send), "thread"),
    ],
)
async def test_any_callable_that_accepts_the_fields_of_a_payload_is_a_handler(function: Any, mode: str) -> None:
    handler = registered(function)
    assert handler.mode == mode
    result = handler.function(**handler.arguments(claimed('{"to": "Ada", "times": 2, "self": 1}')))
    assert (await result if mode == "async" else result) == "sent to Adasent to Ada"
    with pytest.raises(PayloadMismatch, match=r"Expected `int`, got `str` - at `\$.times`"):
        handler.arguments(claimed('{"to": "Ada", "times": "two"}'))


def test_arguments_of_a_partial_are_not_taken_from_the_payload() -> None:
    assert arguments(functools.partial(greet, "Ada"), '{"name": 5, "times": 2}') == {"times": 2}
    assert arguments(functools.partial(greet, name="Ada"), '{"times": 2}') == {"times": 2}
    assert arguments(functools.partial(greet, name="Ada"), '{"name": "Bob"}') == {"name": "Bob"}


def test_a_method_can_be_scheduled() -> None:
    app, mailer = App(), Mailer()
    app.handler("mail")(mailer.send)
    app.periodic("0 3 * * *")(mailer.send)  # another object, which is equal
    app.periodic("0 4 * * *", name="other")(mailer)
    app.handler("call")(mailer)
    assert [(schedule.name, schedule.kind) for schedule in app.schedules] == [("mail", "mail"), ("other", "call")]


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (variable, "parameter 'names' collects arguments, but each payload field needs a named parameter"),
        (open_ended, "parameter 'fields' collects arguments, but each payload field needs a named parameter"),
        (positional, "parameter 'name' is positional-only, but payload fields are passed by name"),
        (misspelled, "the annotations cannot be resolved: name 'Strr' is not defined"),
        (unsupported, "a payload cannot be converted to this signature"),
        (no_type, "a payload cannot be converted to this signature"),
        (two_jobs, "'second'"),
        (stream, "it is a generator"),
        (async_stream, "it is a generator"),
        (functools.partial(stream), "it is a generator"),
        (dict, "dict is a class: register a function, or an instance with __call__"),
        (Address, "Address is a class"),
        ("greet", "a str is not callable"),
        (None, "a NoneType is not callable"),
        (classmethod(greet), "register it below the class, as Class.method"),
        (functools.partial(variable, 1), "parameter 'names' collects arguments, but each payload field needs a named parameter"),
        (print, "parameter 'args' collects arguments, but each payload field needs a named parameter"),
        (len, "parameter 'obj' is positional-only, but payload fields are passed by name"),
        (min, "Python cannot read its parameters"),
        (bare_decorator(greet), "A decorator's wrapper needs @functools.wraps"),
        (by_position(greet), "the decorator's wrapper does not accept the function's parameters by name"),
        (Mailer.send, "parameter 'self' would be a payload field"),
        (functools.partial(Mailer.send), "parameter 'self' would be a payload field"),
        (Mailer.__dict__["of_class"].__func__, "parameter 'cls' would be a payload field"),
        (Pair(), "it is a generator"),
    ],
    ids=lambda value: getattr(value, "__name__", None) or "",
)
def test_callables_that_do_not_accept_a_payload_are_rejected(function: Any, reason: str) -> None:
    message = refusal(function)
    assert message.startswith("test: ")
    assert reason in message


# ------------------------------------------------------------------------------------------------------------------- a connection


class Traced(psycopg.Connection[Any]): ...


def with_connection(conn: psycopg.Connection[Any], name: str) -> None: ...


def with_bare_connection(name: str, *, db: psycopg.Connection) -> None: ...  # type: ignore[type-arg]


def with_annotated_connection(name: str, conn: Annotated[psycopg.Connection[tuple[int]], "mine"]) -> None: ...


def with_optional_connection(name: str, conn: psycopg.Connection[Any] | None = None) -> None: ...


def with_subclass(name: str, conn: Traced) -> None: ...


@pytest.mark.parametrize(
    ("function", "parameter"),
    [
        (with_connection, "conn"),
        (with_bare_connection, "db"),
        (with_annotated_connection, "conn"),
        (with_optional_connection, "conn"),
        (greet, None),
    ],
)
def test_a_parameter_annotated_as_a_connection_receives_a_connection(function: Any, parameter: str | None) -> None:
    handler = registered(function)
    assert handler.connection == parameter
    assert handler.arguments(claimed('{"name": "Ada", "conn": 1, "db": 2}')) == {"name": "Ada"}


def test_a_parameter_name_alone_requests_no_connection() -> None:
    def anything(conn, connection=None) -> None: ...

    assert registered(anything).connection is None
    assert arguments(anything, '{"conn": 1}') == {"conn": 1}


async def over_connection(conn: psycopg.Connection[Any]) -> None: ...


def over_async_connection(conn: psycopg.AsyncConnection[Any]) -> None: ...


def two_connections(one: psycopg.Connection[Any], two: psycopg.Connection[Any]) -> None: ...


def positional_connection(conn: psycopg.Connection[Any], /) -> None: ...


@pytest.mark.parametrize(
    ("function", "options", "reason"),
    [
        (over_connection, {}, "'conn' has type psycopg.Connection, but an async def runs on the Trio loop"),
        (
            with_connection,
            {"cpu": True},
            "'conn' has type psycopg.Connection, but cpu=True runs the function in another process",
        ),
        (over_async_connection, {}, "'conn' has type psycopg.AsyncConnection; a handler can receive only a psycopg.Connection"),
        (two_connections, {}, "parameters 'one' and 'two' receive the connection, so remove all but one"),
        (positional_connection, {}, "parameter 'conn' is positional-only, but payload fields are passed by name"),
        (with_subclass, {}, "'conn' has type tests.engine.test_handlers.Traced; a handler can receive only a psycopg.Connection"),
    ],
    ids=lambda value: getattr(value, "__name__", None) or "",
)
def test_unsupported_connections_are_rejected(function: Any, options: dict[str, Any], reason: str) -> None:
    message = refusal(function, **options)
    assert message.startswith("test: ")
    assert reason in message


def closure() -> Callable[[], int]:
    number = 1
    return lambda: number


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (over_async, "needs a plain def"),
        (lambda: None, "at the top level of a module"),
        (closure(), "at the top level of a module"),
        (functools.partial(greet, "Ada"), "at the top level of a module"),
        (Mailer(), "at the top level of a module"),
        (Mailer().send, "at the top level of a module"),
        (Mailer.of_nobody, "at the top level of a module"),
        ([].copy, "at the top level of a module"),
        (AsyncMailer(), "needs a plain def"),
        (functools.partial(over_async), "needs a plain def"),
        (decorator(lambda: None), "at the top level of a module"),
    ],
)
def test_functions_that_another_process_cannot_import_are_rejected_for_processes(function: Any, reason: str) -> None:
    assert reason in refusal(function, cpu=True)


@pytest.mark.parametrize("way", [["-c"], ["-"]], ids=["command", "standard input"])
def test_a_function_of_an_interactive_session_is_rejected_for_processes(way: list[str]) -> None:
    program = "import jobqueue\ndef f(): ...\njobqueue.App().handler('k', cpu=True)(f)"
    command = [sys.executable, *way, *([program] if way == ["-c"] else [])]
    ended = subprocess.run(command, input=program, capture_output=True, text=True, check=False)
    assert "HandlerError: k: cpu=True needs a function at the top level of a module" in ended.stderr


def test_a_function_of_a_program_is_accepted_for_processes(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("import jobqueue\n@jobqueue.App().handler('k', cpu=True)\ndef f(): ...\n")
    subprocess.run([sys.executable, tmp_path / "program.py"], check=True)


def test_a_rejected_function_leaves_its_kind_free() -> None:
    app = App()
    with pytest.raises(HandlerError):
        app.handler("test")(variable)
    app.handler("test")(greet)
    assert app.handlers["test"].function is greet
