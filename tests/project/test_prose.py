"""The count of prose faults finds what it should in each kind of file."""

from pathlib import Path

import pytest

from tests.support import prose


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "a.md",
            "One is told.\n\n```\ntold\n```\n\n| a | told |\n|---|---|\n| told | told |\n",
            [(1, "told"), (7, "told"), (9, "told"), (9, "told")],
        ),
        (
            "a.py",
            '"""It is told."""\nx = 1  # told\ny = 2  # told\n# told\nz = f"a node {x} is told"\n',
            [(1, "told"), (5, "told"), (2, "told"), (3, "told"), (4, "told")],
        ),
        ("a.py", 'x = "told"\ny = """SELECT 1 -- told\n  \'this one is not told\'"""\n', [(2, "told")]),
        (
            "a.sql",
            "-- It is told\n-- twice: told.\nSELECT 'he was told so ''now'''; -- told\n",
            [(1, "told"), (1, "told"), (3, "told"), (3, "told")],
        ),
        ("a.js", '// told\nf("you are told so"); /* told */\nconst told = 1;\n', [(2, "told"), (1, "told"), (2, "told")]),
        ("a.yaml", "told: 1 # told\n", [(1, "told")]),
        ("a.md", "Here: `a: b: c` is fine.\n", []),
        ("a.md", "Here: it is: wrong.\n", [(1, "two colons")]),
        ("a.md", " ".join(["word"] * 30) + ".\n\n" + " ".join(["word"] * 31) + ".\n", [(3, "long")]),
        ("a.md", "This is no longer so. This is no horse.\n", [(1, "is no")]),
    ],
)
def test_faults_are_found_with_their_lines(name: str, content: str, expected: list[tuple[int, str]], tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content)
    found = [(fault.line, fault.what) for text in prose.texts(path) for fault in prose.faults(text)]
    assert [(line, what.removeprefix("phrase ").strip("'")) for line, what in found] == expected


def test_a_file_may_not_get_worse() -> None:
    assert prose.worse({"old.md": 3, "new.md": 0}, {"old.md": 3}) == []
    assert [line.partition(":")[0] for line in prose.worse({"old.md": 4, "new.md": 1}, {"old.md": 3})] == ["old.md", "new.md"]


def test_every_kind_of_file_of_the_project_is_read() -> None:
    names = {path.relative_to(prose.ROOT).as_posix() for path in prose.files()}
    assert names >= {"README.md", "schema.sql", "docs/index.md", "jobqueue/service.py", "jobqueue/http/static/main.js", ".ci/run"}
