"""The SQL of the database schema, for migration tools such as Alembic and Django.

::

    for statement in jobqueue.schema.steps(1, 2):
        connection.execute(statement)

The statements run in the transaction of the tool. They begin and end no transaction, and restore the settings that they change.
"""

from __future__ import annotations

import re

from jobqueue.schema_names import DEFAULT, render
from jobqueue.storage.schema import SCHEMA_VERSION, parts
from jobqueue.storage.schema.parts import Part

__all__ = ["SCHEMA_VERSION", "finish_steps", "steps"]

_SETTING = re.compile(r"^SET LOCAL (\S+) =", re.MULTILINE)


def steps(from_version: int, to_version: int, *, schema: str = DEFAULT) -> list[str]:
    """Return the statements that create the schema, or upgrade it. They change nothing if they run again.

    The package contains the SQL of one version only. So with a newer jobqueue, the statements lead to the newer version.

    Args:
        from_version: the version of the database; 0 for a database without the schema.
        to_version: the version that the database must have afterwards.
        schema: the name of the schemas, as for ``jobqueue migrate --schema``.

    Raises:
        ValueError: this jobqueue has an older version than `to_version`, or the versions are not in order.
        SettingsError: the name of the schemas is not valid.
    """
    if not 0 <= from_version < to_version <= SCHEMA_VERSION:
        raise ValueError(
            f"steps({from_version}, {to_version}): the versions must rise, from 0 or more to at most {SCHEMA_VERSION},"
            " the version of this jobqueue"
        )
    return _statements(parts.upgrading(from_version), schema)


def finish_steps(version: int, *, schema: str = DEFAULT) -> list[str]:
    """Return the statements that finish the upgrade to a version. They fail while nodes of an older version run.

    Args:
        version: the version to finish.
        schema: the name of the schemas, as for ``jobqueue migrate --schema``.

    Raises:
        ValueError: this jobqueue has an older version, or the version never needed an upgrade.
        SettingsError: the name of the schemas is not valid.
    """
    if not 1 < version <= SCHEMA_VERSION:
        raise ValueError(f"finish_steps({version}): the version must be 2 to {SCHEMA_VERSION}, the version of this jobqueue")
    return _statements([part for part in parts.finishing() if part.version is None or part.version <= version], schema)


def _statements(chosen: list[Part], schema: str) -> list[str]:
    """Split parts into statements, and add statements that restore the settings of the session."""
    text = "".join(part.text for part in chosen)
    names = list(dict.fromkeys(_SETTING.findall(text)))
    saved = {name: f"jobqueue.saved_{name.replace('.', '_')}" for name in names}
    save = ", ".join(f"set_config('{place}', current_setting('{name}'), true)" for name, place in saved.items())
    restore = ", ".join(f"set_config('{name}', current_setting('{place}'), true)" for name, place in saved.items())
    statements = [f"DO $$ BEGIN PERFORM {save}; END $$;", *parts.statements(text), f"DO $$ BEGIN PERFORM {restore}; END $$;"]
    return [render(statement, schema) for statement in statements]
