"""The cause of a failure: real and hostile error messages, for which SQL and Python must agree."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobqueue.testing.causes import MAX_CAUSE_LENGTH, MAX_LOOKED_AT, cause_of
from tests.support.postgres import SERVERS, ServerPool

pytestmark = pytest.mark.slow

UNIQUE = (
    'UniqueViolation: duplicate key value violates unique constraint "orders_{}_pkey"\n'
    "DETAIL:  Key (id, email)=({}) already exists."
)

CAUSES = {
    "KeyError: 'email'": ["KeyError: 'email'"],
    "KeyError: 'price'": ["KeyError: 'price'"],
    "KeyError: '#'": ["KeyError: '0042'", "KeyError: '3f2504e0-4f89-11d3-9a0c-0305e82c3301'", "KeyError: 'a b'"],
    "AttributeError: 'NoneType' object has no attribute 'price'": ["AttributeError: 'NoneType' object has no attribute 'price'"],
    "AttributeError: 'Order' object has no attribute 'price'": ["AttributeError: 'Order' object has no attribute 'price'"],
    "ModuleNotFoundError: No module named 'foo.bar'": ["ModuleNotFoundError: No module named 'foo.bar'"],
    "ValueError: invalid literal for int() with base #: '#'": [
        "ValueError: invalid literal for int() with base 10: 'abc'",
        "ValueError: invalid literal for int() with base 10: 'it\\'s'",
        'ValueError: invalid literal for int() with base 10: "it\'s 5"',
    ],
    "ConnectionRefusedError: [Errno 111] Connect call failed ('#', #)": [
        "ConnectionRefusedError: [Errno 111] Connect call failed ('10.0.0.7', 5432)",
        "ConnectionRefusedError: [Errno 111] Connect call failed ('10.0.13.77', 65432)",
    ],
    "OSError: [Errno 28] No space left on device": ["OSError: [Errno 28] No space left on device"],
    "OSError: [Errno 12] Cannot allocate memory": ["OSError: [Errno 12] Cannot allocate memory"],
    "FileNotFoundError: [Errno 2] No such file or directory: '#'": [
        "FileNotFoundError: [Errno 2] No such file or directory: '/tmp/tmpab12/x.csv'",
        "FileNotFoundError: [Errno 2] No such file or directory: 'report 17.csv'",
    ],
    "HTTPStatusError: Client error '404 Not Found' for url '#' For more information check: https://developer.mozilla.org/#": [
        f"HTTPStatusError: Client error '404 Not Found' for url 'https://api.example.com/v1/users/{user}?x=1'\n"
        "For more information check: https://developer.mozilla.org/en-US/docs/Web/HTTP/Status/404"
        for user in (17, "anna")
    ],
    "HTTPError: # Server Error: Service Unavailable for url: https://api.example.com/#": [
        "HTTPError: 503 Server Error: Service Unavailable for url: https://api.example.com/v1/a?b=c&d=1",
        "HTTPError: 503 Server Error: Service Unavailable for url: https://api.example.com/v1/b#e",
    ],
    "upstream answered with status 502": ["upstream answered with status 502", "upstream  answered\twith status 502 "],
    "upstream answered with status 504": ["upstream answered with status 504"],
    "the worker died with exit code -9": ["the worker died with exit code -9"],
    "the worker died with exit code -11": ["the worker died with exit code -11"],
    'UniqueViolation: duplicate key value violates unique constraint "orders_#_pkey" DETAIL: Key (id, email)=(#) already exists.': [
        UNIQUE.format(2024, "17, a@b.c"),
        UNIQUE.format(2025, "18, d'e@f.g"),
    ],
    'UndefinedTable: relation "orders" does not exist LINE #: SELECT * FROM orders': [
        'UndefinedTable: relation "orders" does not exist\nLINE 1: SELECT * FROM orders'
    ],
    "SMTPRecipientsRefused: no user # (id=#)": [
        "SMTPRecipientsRefused: no user anna@example.com (id=5)",
        "SMTPRecipientsRefused: no user bert.b+c@mail.example.com (id=-5.5e+10)",
    ],
    "RuntimeError: <Order object at #> is closed": [
        "RuntimeError: <Order object at 0x7f3a8c0012d0> is closed",
        "RuntimeError: <Order object at 0x55d0> is closed",
    ],
    "commit # is gone": ["commit 1234567 is gone", "commit 3f2a9bc is gone", "commit bad1234 is gone", "commit 0 is gone"],
    "order # of tenant # is late by # s": [
        "order 3f2504e0-4f89-11d3-9a0c-0305e82c3301 of tenant 12 is late by 1.5 s",
        "order 3f2504e04f8911d39a0c0305e82c3301 of tenant 1,234 is late by 1e-05 s",
        "order ORDER-2026-00012345-ABC of tenant 7:8 is late by -3 s",
    ],
    "lease ended at #": [
        "lease ended at 2026-01-31T08:00:00.123456+01:00",
        "lease ended at 2026-01-31 08:00:00Z",
        "lease ended at 2026-01-31",
        "lease ended at 08:00:00",
    ],
    "these are left: [#]": ["these are left: [1, 2, 3]", "these are left: [17]"],
    "cannot write /var/#": ["cannot write /var/lib/app/7/x.db", "cannot write /var/tmp/y-1.db"],
    "the token # is not valid": [
        "the token sk_live_4eC39HqLyjWDarjtT1zdp7dc is not valid",
        "the token eyJhbGciOiJIUzI1NiJ9abc is not valid",
    ],
    "utf8 in S3 of worker7 for job#": ["utf8 in S3 of worker7 for job12345", "utf8 in S3 of worker7 for job9876543"],
    "timed out after # s": ["timed out after 30.0 s", "timed out after 5 s"],
    "can't open it: the users' table isn't there": ["can't open it: the users' table isn't there"],
    "bad answer: '#'": ["bad answer: '<html>'", f"bad answer: '{'<p>' * 5_000}'", "bad answer: b'\\x00'", 'bad answer: "x"'],
    "unknown": [" ", "\t\r\n\x7f"],
}
"""Messages by their expected cause."""

HOSTILE = [
    *(character * 5_000 for character in "aA0'\"/.-_:#@ =([{\\~%é\U0001f642"),
    *(
        (piece * 5_000)[:5_000]
        for piece in (
            *("a0", "a-", "0-", "/a", "'a", "a'", "error '404 A", "Key=(", "1.", "1e-", "a@", "a@.", "://", "a://a", "2026-01-31T"),
            *(
                "KeyError: 'a",
                "abcdef1 ",
                "1a1a1a ",
                "code 1",
                "#.",
                "# ",
                "../",
                "'a' object ",
                "\x01\x02'",
                "\u2028",
                "é ",
                "'\x02",
            ),
        )
    ),
    "x" * 1_000_000,
    "'a" * 500_000,
]

MESSAGES = [message for messages in CAUSES.values() for message in messages]


@pytest.fixture(params=sorted(SERVERS))
def asked(request: pytest.FixtureRequest, servers: ServerPool) -> Iterator[psycopg.Connection]:
    with psycopg.connect(servers.emptied(request.param), autocommit=True) as connection:
        yield connection


def by_sql(connection: psycopg.Connection, messages: list[str]) -> list[str]:
    sql = "SELECT jobqueue_internal.cause_of(jsonb_build_array(jsonb_build_object('error', m)), 'why') FROM unnest(%s::text[]) AS m"
    return [cause for (cause,) in connection.execute(sql, (messages,))]


@pytest.mark.parametrize(("cause", "messages"), CAUSES.items())
def test_messages_of_one_cause_have_one_text(cause: str, messages: list[str]) -> None:
    assert {cause_of(message, "why") for message in messages} == {cause}
    assert cause_of(None, messages[0]) == cause
    assert cause_of("", messages[0]) == cause


def test_sql_and_python_agree_on_real_and_hostile_texts(asked: psycopg.Connection) -> None:
    messages = [*MESSAGES, *HOSTILE, ""]
    causes = by_sql(asked, messages)
    assert causes == [cause_of(message, "why") for message in messages]
    assert all(1 <= len(cause) <= MAX_CAUSE_LENGTH for cause in causes)
    assert max(map(len, causes)) == MAX_CAUSE_LENGTH


def test_sql_and_python_agree_on_random_texts(asked: psycopg.Connection) -> None:
    dice = random.Random(7)
    pieces = [
        *"aAbfx019'\"/.-_:#@ =(){}[],e\\~%+\x01\x02\x1f\x7fé€",
        "://",
        "0x",
        "KeyError: '",
        "' object",
        "code ",
        "status=",
        "2026-01-31",
        "T08:00",
    ]
    messages = ["".join(dice.choices(pieces, k=dice.choice([5, 20, 60, 300, 1_200]))) for _ in range(3_000)]
    for message, cause in zip(messages, by_sql(asked, messages), strict=True):
        assert cause == cause_of(message, "why"), message


@given(st.text(st.characters(min_codepoint=1), max_size=MAX_LOOKED_AT + 50))
def test_a_cause_is_one_short_line_whatever_the_message(message: str) -> None:
    cause = cause_of(message, "why")
    assert 1 <= len(cause) <= MAX_CAUSE_LENGTH
    assert cause == cause.strip(" ")
    assert not any(character < " " or character == "\x7f" for character in cause)


@pytest.mark.parametrize("errors", ["[]", "{}", "5", "null", '[{"attempt": 1}]', '[{"error": null}]', '[{"error": ""}]', '["x"]'])
def test_without_an_error_message_the_reason_is_the_cause(asked: psycopg.Connection, errors: str) -> None:
    assert asked.execute("SELECT jobqueue_internal.cause_of(%s, 'attempt 3 of 4')", (errors,)).fetchone() == ("attempt # of #",)


def test_the_last_error_is_the_cause(asked: psycopg.Connection) -> None:
    errors = json.dumps([{"error": "the first"}, {"error": "the last 1"}])
    assert asked.execute("SELECT jobqueue_internal.cause_of(%s, 'why')", (errors,)).fetchone() == ("the last #",)


def test_the_longest_names_and_cause_fit_into_the_index(asked: psycopg.Connection) -> None:
    longest = "\U0001f642" * 200
    asked.execute(
        "INSERT INTO jobqueue_internal.dead_jobs (id, queue, kind, priority, reason, payload, attempt, claims, created_at,"
        " available_since,"
        " died_at, errors) VALUES (jobqueue_internal.uuid7(), %s, %s, 0, %s, '{}', 1, 1, now(), now(), now(), '[]')",
        ("".join(chr(0x10000 + n) for n in range(200)), "".join(chr(0x20000 + n) for n in range(200)), longest),
    )
    assert asked.execute("SELECT cause FROM jobqueue_internal.dead_jobs").fetchone() == (longest,)
