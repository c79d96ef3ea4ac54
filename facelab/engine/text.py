"""Files that are written whole or not at all, their hashes, what they were made from, and tables in Markdown."""

import hashlib
import json
import os
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def replacing(path):
    "Write to the yielded path: it takes the place of `path` when the block succeeds, and is removed when the block fails."
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}-{uuid4().hex}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path, text):
    "Write a text file, whole or not at all."
    with replacing(path) as half:
        half.write_text(text)


def was_made(record, made_from):
    "Does the record of what something was made from say the same?"
    return Path(record).exists() and Path(record).read_text() == record_of(made_from)


def write_record(record, made_from):
    "Note what something was made from: JSON, beside what was made."
    write_text(record, record_of(made_from))


def record_of(made_from):
    return json.dumps(made_from, indent=1, sort_keys=True) + "\n"


def sha256(path):
    "SHA-256 of a file, its first 16 digits; None if there is no file."
    if not Path(path).exists():
        return None
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def markdown_table(rows, head, align=None):
    "A table in Markdown; numbers to the right by default, thousands with commas."
    cell = lambda v: f"{v:,}" if isinstance(v, int) else " ".join(str(v).replace("|", "/").split())
    rows = [list(row) for row in rows]
    right = [bool(rows) and all(isinstance(row[i], (int, float)) for row in rows) for i in range(len(head))]
    marks = align or ["---:" if r else "---" for r in right]
    return "\n".join(f"| {' | '.join(map(cell, row))} |" for row in (head, marks, *rows))
