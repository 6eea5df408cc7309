"""The SQL of jobqueue, rendered for other names of its schemas."""

from __future__ import annotations

import re

import pytest

from jobqueue.errors import SettingsError
from jobqueue.schema_names import DEFAULT, LOCKS, MAX_LENGTH, channel, check, render
from jobqueue.storage.schema import script, source

LONGEST_CHANNEL_BYTES = 63


def everything(name: str) -> str:
    return source(name) + script(name, finish=True)


EVERYTHING = everything(DEFAULT)


@pytest.mark.parametrize(
    "name", ["jobqueue", "m", "_", "mail_2", "jobqueue_keys", "internal", "pgmail", "publicly", "x" * MAX_LENGTH]
)
def test_valid_names(name: str) -> None:
    assert check(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Mail",
        "2mail",
        "mail-2",
        "mail.jobs",
        'mail"',
        "mail'",
        "mail\n",
        "mäil",
        "pg_mail",
        "public",
        "mail_internal",
        "x" * (MAX_LENGTH + 1),
    ],
)
def test_an_invalid_name_is_rejected_before_it_reaches_sql(name: str) -> None:
    with pytest.raises(SettingsError, match=r"^the schema name \(--schema\) must"):
        check(name)
    with pytest.raises(SettingsError, match=re.escape(repr(name))):
        render("SELECT * FROM jobqueue.jobs", name)


def test_the_default_name_leaves_sql_unchanged() -> None:
    assert render(EVERYTHING, DEFAULT) == EVERYTHING


def test_the_script_for_another_name_has_the_default_name_only_in_comments_and_messages() -> None:
    """The product keeps its name, and each channel contains its default name."""
    code = re.sub(r"(?m)--.*$|RAISE EXCEPTION [^;]*;|COMMENT ON \S+ \S+ IS '[^']*'", "", everything("mail"))
    left = {line.strip() for line in code.splitlines() if "jobqueue" in line.replace("pg_notify('mail:jobqueue", "")}
    assert left == set()


def test_the_script_for_another_name_differs_only_in_names() -> None:
    other = everything("queue_2")
    numbers = {numbers for text in (EVERYTHING, other) for numbers in re.findall(r"lock\((\d+)", text)}
    assert len(numbers) == 2 * len(set(re.findall(r"lock\((\d+)", EVERYTHING)))
    assert all(int(number) < 2**63 for number in numbers)
    restored = re.sub(r"(?<=lock\()\d{7}", str(LOCKS), other.replace("'queue_2:", "'").replace("queue_2", DEFAULT))
    assert restored == EVERYTHING


@pytest.mark.parametrize(
    ("sql", "rendered"),
    [
        ("SELECT jobqueue_internal.claim(%s)", "SELECT mail_internal.claim(%s)"),
        ("SELECT jobqueue.submit_many('{}')", "SELECT mail.submit_many('{}')"),
        ("EXECUTE format('DROP TABLE jobqueue_internal.%I', n)", "EXECUTE format('DROP TABLE mail_internal.%I', n)"),
        ("CREATE SCHEMA jobqueue;", "CREATE SCHEMA mail;"),
        ("to_regclass('jobqueue.jobs')", "to_regclass('mail.jobs')"),
        ("nspname IN ('jobqueue', 'jobqueue_internal')", "nspname IN ('mail', 'mail_internal')"),
        ("PERFORM pg_notify('jobqueue', '')", "PERFORM pg_notify('mail:jobqueue', '')"),
        ("PERFORM pg_notify('jobqueue_keys', '')", "PERFORM pg_notify('mail:jobqueue_keys', '')"),
        ("application_name LIKE 'jobqueue %%'", "application_name LIKE 'jobqueue %%'"),
        ("RAISE 'jobqueue schema version 3'", "RAISE 'jobqueue schema version 3'"),
    ],
)
def test_each_kind_of_name_is_rendered(sql: str, rendered: str) -> None:
    assert render(sql, "mail") == rendered


def test_no_two_queues_share_a_channel() -> None:
    channels = {
        name: {channel(found, name) for found in default_channels()} for name in ("jobqueue", "mail", "mail_keys", "jobqueue_keys")
    }
    assert len(set().union(*channels.values())) == sum(map(len, channels.values()))


def test_the_name_of_each_channel_fits() -> None:
    assert max(len(channel(found, "x" * MAX_LENGTH)) for found in default_channels()) <= LONGEST_CHANNEL_BYTES


def default_channels() -> set[str]:
    return set(re.findall(r"pg_notify\('(\w+)'", EVERYTHING))
