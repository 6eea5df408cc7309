"""Count the most frequent faults of prose in every text of the project.

    python -m tests.support.prose               compare each file with its record; CI runs this
    python -m tests.support.prose FILE...       list the candidates of some files
    python -m tests.support.prose --record      write the counts of today as the new record
    python -m tests.support.prose --sample 7    print 20 random texts of each kind, drawn with the seed 7

The texts are Markdown, docstrings, comments, and messages: strings of at least four words. A fault
is a sentence of more than 30 words, a sentence with two colons, or a phrase of `MARKED`. The counts
find candidates for a second look. They do not replace reading.
"""

from __future__ import annotations

import ast
import io
import json
import random
import re
import sys
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
RECORD = Path(__file__).with_suffix(".json")
"""The number of candidates that each file is allowed to have. A file without an entry is not allowed any."""

WORDS = 30
"""Maximum length of a sentence, in words."""

MARKED = re.compile(
    r"(?:^|[,;:(] ?)(?:who|what) (?!is it|are you|do you|does it|you|is wrong|to do)"
    r"|\b(?:is|are|was|be) no \b(?!longer)"
    r"|\b(?:told|tells|said)\b"
    r"|\bof (?:its|their|ours|theirs|yours|his) own\b|\bof ours\b|\bso many\b|\bbe it\b|\bas ever\b|\bby itself\b"
    r"|\bon its way\b|\bat the most\b|\bbeside\b|\bgoes along\b|\blet go\b|\bfor want of\b"
    r"|\bthose (?:that|of|who)\b|\bwhat (?:it|was|has|they|of)\b",
    re.IGNORECASE,
)
"""Phrases that usually mark a sentence without an actor, or a metaphor."""

SQL = re.compile(r"\b(SELECT|INSERT INTO|UPDATE|DELETE FROM|CREATE|ALTER|DROP|COALESCE|FROM|WHERE|RETURNING|VALUES)\b")


class Text(NamedTuple):
    kind: str
    line: int
    text: str


class Fault(NamedTuple):
    line: int
    what: str
    sentence: str


def texts(path: Path) -> Iterator[Text]:
    """Yield the texts of a file that a person reads, each with the number of its first line."""
    content = path.read_text(encoding="utf-8")
    match path.suffix:
        case ".md":
            yield from markdown(content)
        case ".py":
            yield from python(content)
        case ".sql":
            yield from sql(content)
        case ".js" | ".css" | ".html":
            yield from script(content)
        case _:
            yield from joined(marked_lines(content, re.compile(r"(?:^|\s)#(?!!)(.*)")))


def markdown(content: str) -> Iterator[Text]:
    """Yield paragraphs, list items, and cells of tables, without code blocks."""
    fenced = False
    block: list[str] = []
    start = 1
    for number, line in enumerate([*content.splitlines(), ""], 1):
        bare = line.strip()
        fence = bare.startswith(("```", ":::"))
        if fence and not bare.startswith(":::"):
            fenced = not fenced
        breaks = fence or fenced or not bare or bare.startswith(("#", "|", "!", "%", "<!--")) or re.match(r"[-*+] |\d+\. ", bare)
        if breaks or line.startswith("    "):
            if block:
                yield Text("Markdown", start, "\n".join(block))
            block = []
        if fence or fenced or (line.startswith("    ") and not block and not re.match(r"[-*+] |\d+\. ", bare)):
            continue
        if bare.startswith("|"):
            yield from (Text("Markdown", number, cell) for cell in bare.strip("|").split("|"))
        elif bare and not bare.startswith(("#", "!", "%", "<!--")):
            start = start if block else number
            block.append(bare)


def python(content: str) -> Iterator[Text]:
    """Yield docstrings, comments, and messages. A string below a constant is its docstring."""
    documented: set[int] = set()
    tree = ast.parse(content)
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            documented.add(id(node.value))
            yield Text("docstrings", node.lineno, without_code(node.value.value))
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield from message(node.lineno, "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented | parts:
            yield from message(node.lineno, node.value)
    tokens = tokenize.generate_tokens(io.StringIO(content).readline)
    found = (token for token in tokens if token.type == tokenize.COMMENT)
    yield from joined((token.start[0], token.string.lstrip("#"), token.line.lstrip().startswith("#")) for token in found)


def message(line: int, text: str) -> Iterator[Text]:
    """Yield a string if a person reads it. For a statement in SQL, yield only its comments."""
    if SQL.search(text):
        yield from (one._replace(line=line) for one in joined(marked_lines(text, re.compile(r"--(.*)"))))
    elif len(re.findall(r"[A-Za-z']+", text)) > 3 and " " in text.strip():
        yield Text("messages", line, text)


def sql(content: str) -> Iterator[Text]:
    yield from joined(marked_lines(content, re.compile(r"--(.*)")), "SQL comments")
    bare = re.sub(r"--.*", "", content)
    for found in re.finditer(r"'((?:[^']|'')*)'", bare):
        if len(re.findall(r"[A-Za-z]+", found[1])) > 3 and not SQL.search(found[1]):
            yield Text("messages", bare.count("\n", 0, found.start()) + 1, found[1].replace("''", "'"))


def script(content: str) -> Iterator[Text]:
    """Yield comments and strings of JavaScript, CSS, or HTML."""
    for found in re.finditer(r"/\*(.*?)\*/", content, re.DOTALL):
        yield Text("comments", content.count("\n", 0, found.start()) + 1, re.sub(r"^\s*\*", "", found[1], flags=re.MULTILINE))
    bare = re.sub(r"/\*.*?\*/", lambda found: "\n" * found[0].count("\n"), content, flags=re.DOTALL)
    yield from joined(marked_lines(bare, re.compile(r"(?:^|\s)//(.*)")))
    bare = re.sub(r"(^|\s)//.*", r"\1", bare)
    for found in re.finditer(r'"([^"\n]*)"|>([^<>{}]*)<', bare):
        text = found[1] or found[2] or ""
        if len(re.findall(r"[A-Za-z']+", text)) > 3 and not re.search(r"=>|[{};]", text):
            yield Text("messages", bare.count("\n", 0, found.start()) + 1, text)


def marked_lines(content: str, mark: re.Pattern[str]) -> Iterator[tuple[int, str, bool]]:
    """Yield the number of each line with a comment, the comment, and whether the line contains nothing else."""
    for number, line in enumerate(content.splitlines(), 1):
        if found := mark.search(line):
            yield number, found[1], not line[: found.start()].strip()


def joined(lines: Iterable[tuple[int, str, bool]], kind: str = "comments") -> Iterator[Text]:
    """Join the comments of consecutive lines, except for comments behind code."""
    block: list[str] = []
    start = last = -1
    for number, line, alone in lines:
        if block and (number != last + 1 or not alone):
            yield Text(kind, start, "\n".join(block))
            block = []
        start = start if block else number
        block.append(line.strip())
        last = number if alone else -1
    if block:
        yield Text(kind, start, "\n".join(block))


def without_code(docstring: str) -> str:
    """Leave out the indented blocks and the tables of a docstring."""
    first, _, rest = docstring.partition("\n")
    margin = min((len(line) - len(line.lstrip()) for line in rest.splitlines() if line.strip()), default=0)
    kept = [line[margin:] for line in rest.splitlines()]
    return "\n".join([first, *("" if line.startswith("    ") or "  " in line.strip() else line for line in kept)])


def sentences(text: str) -> Iterator[str]:
    plain = re.sub(r"`[^`]*`|https?://\S+", "X", text)
    for sentence in re.split(r"(?<=[.!?:])\s+(?=[A-Z`*\[\"'])|\n\s*\n|\n(?=[-*] )", plain):
        yield " ".join(sentence.split())


def faults(text: Text) -> Iterator[Fault]:
    for sentence in sentences(text.text):
        if len(re.findall(r"[\w'./-]+", sentence)) > WORDS:
            yield Fault(text.line, "long", sentence)
        if len(re.findall(r":(?=\s)", sentence)) > 1:
            yield Fault(text.line, "two colons", sentence)
        for found in MARKED.finditer(sentence):
            yield Fault(text.line, f"phrase {found[0].strip()!r}", sentence)


def files() -> list[Path]:
    """Every file of the project with texts for people."""
    found = [ROOT / name for name in ("schema.sql", "pyproject.toml", "compose.yaml", "Dockerfile", ".ci/run")]
    found += ROOT.glob("*.md")
    for directory in ("jobqueue", "tests", "benchmarks", "examples", "docs"):
        found += (
            path for suffix in ("py", "md", "sql", "js", "css", "html", "yaml") for path in (ROOT / directory).rglob(f"*.{suffix}")
        )
    left_out = {"vendor", "_build", "__pycache__", "node_modules", "results"}
    # This file and its test quote the phrases, and version_1.sql is a dump of an earlier schema.
    return sorted(
        path
        for path in found
        if not left_out & set(path.parts) and not path.is_symlink() and path.stem not in {"prose", "test_prose", "version_1"}
    )


def counts() -> tuple[dict[str, int], Counter[str], Counter[str]]:
    """Return the candidates of each file, the candidates of each kind of text, and the sentences of each kind."""
    by_file: dict[str, int] = {}
    by_kind: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for path in files():
        found = 0
        for text in texts(path):
            candidates = len(list(faults(text)))
            by_kind[text.kind] += candidates
            total[text.kind] += len(list(sentences(text.text)))
            found += candidates
        by_file[path.relative_to(ROOT).as_posix()] = found
    return by_file, by_kind, total


def worse(by_file: dict[str, int], record: dict[str, int]) -> list[str]:
    """Return a line for each file with more candidates than its record allows."""
    return [
        f"{name}: {found} candidates, where the record allows {record.get(name, 0)}; see python -m tests.support.prose {name}"
        for name, found in by_file.items()
        if found > record.get(name, 0)
    ]


def sample(seed: int, size: int = 20) -> Iterator[str]:
    """Yield random texts of each kind, for readers."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for path in files():
        for text in texts(path):
            kind = "comments" if text.kind == "SQL comments" else text.kind
            printed = kind != "messages" or not path.is_relative_to(ROOT / "tests")
            if printed and len(text.text.split()) > 3:
                found[kind].append(f"[{path.relative_to(ROOT)}:{text.line}] {' '.join(text.text.split())}")
    chosen = random.Random(seed)
    for kind, all_of_kind in sorted(found.items()):
        yield f"\n## {kind}\n"
        yield from chosen.sample(all_of_kind, size)


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--sample"]:
        print(*sample(int(arguments[1])), sep="\n")  # noqa: T201
        return 0
    if arguments and arguments != ["--record"]:
        for name in arguments:
            for text in texts(Path(name)):
                for fault in faults(text):
                    print(f"{name}:{fault.line}: {fault.what}: {fault.sentence}")  # noqa: T201
        return 0
    by_file, by_kind, total = counts()
    for kind in sorted(total):
        print(f"{kind}: {by_kind[kind]:,} candidates in {total[kind]:,} sentences")  # noqa: T201
    if arguments:
        RECORD.write_text(json.dumps({name: found for name, found in by_file.items() if found}, indent=0) + "\n", encoding="utf-8")
        return 0
    found = worse(by_file, json.loads(RECORD.read_text(encoding="utf-8")))
    print(*found, sep="\n")  # noqa: T201
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
