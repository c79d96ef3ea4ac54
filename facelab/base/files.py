"""Files that are written whole or not at all, their hashes, and records of what they were made from.

Also what every command needs: lines that any terminal shows, one exit status, tables in Markdown.
"""

import hashlib
import json
import os
import sys
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from facelab import FacelabError


@contextmanager
def replacing(path):
    """Write to the yielded path: it takes the place of `path` when the block succeeds.

    When the block fails, what it wrote is removed, and `path` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem[:40]}-{uuid4().hex}{path.suffix}")  # a name has 255 bytes at most
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def folder_lock(folder):
    "One process at a time: others wait until the block is left. A process that dies loses its lock."
    place = os.open(folder, os.O_RDONLY)
    try:
        with suppress(ImportError, OSError):  # a file system without locks
            import fcntl

            fcntl.flock(place, fcntl.LOCK_EX)
        yield
    finally:
        os.close(place)


def write_text(path, text):
    "Write a text file, whole or not at all."
    with replacing(path) as half:
        half.write_text(text, "utf-8")


def record_matches(record, made_from):
    "Whether the file `record` holds just this record of what something was made from."
    return Path(record).exists() and Path(record).read_text("utf-8") == format_record(made_from)


def write_record(record, made_from):
    "Note what something was made from: JSON, beside what was made."
    write_text(record, format_record(made_from))


def format_record(made_from):
    "A record as JSON text with sorted keys: equal records are equal texts."
    return json.dumps(made_from, indent=1, sort_keys=True) + "\n"


def sha256(path):
    "SHA-256 of a file, its first 16 digits; None if there is no file."
    if not Path(path).exists():
        return None
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def listing(folder):
    "What identifies the files of a folder: a hash of their paths, sizes and times of change, 16 digits."
    files = ((p.relative_to(folder).as_posix(), p.stat()) for p in Path(folder).rglob("*") if p.is_file())
    rows = sorted((name, about.st_size, about.st_mtime_ns) for name, about in files)
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def print_line(text, file=None):
    """Print one line that any terminal can show, on stdout or `file`.

    File names may hold line ends, control characters, or bytes that are no text: those are escaped.
    """
    file = file or sys.stdout
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
    print(shown.encode(file.encoding or "utf-8", "backslashreplace").decode(file.encoding or "utf-8"), file=file)


def speak_any_encoding():
    "Let prints show letters that the terminal has none for, such as ± under LC_ALL=C, as escapes instead of failing."
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError):  # a notebook's; one whose file a warm process has exchanged
            stream.reconfigure(errors="backslashreplace")


def run_command(run):
    "The exit status of a command: what `run` returns, or 1 (130 for Ctrl-C) after one line about what stopped it."
    speak_any_encoding()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # about damaged files, which have an error line already
    try:
        status = run()
        sys.stdout.flush()
        return status
    except FacelabError as error:
        print_line(f"facelab: {error}", sys.stderr)
    except KeyboardInterrupt:
        print_line("facelab: stopped; what was finished is kept", sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except OSError as error:
        what = f"{error.filename or ''} {error.strerror or error}: check the path, the permissions and the free space"
        print_line(f"facelab: {' '.join(what.split())}", sys.stderr)
    except MemoryError:
        print_line("facelab: there is not enough memory: ask for less at once", sys.stderr)
    return 1


def markdown_table(rows, head, align=None):
    "Rows as a table in Markdown, a string; numbers stand right by default, thousands have commas."
    cell = lambda v: f"{v:,}" if isinstance(v, int) else " ".join(str(v).replace("|", "/").split())
    rows = [list(row) for row in rows]
    right = [bool(rows) and all(isinstance(row[i], (int, float)) for row in rows) for i in range(len(head))]
    marks = align or ["---:" if r else "---" for r in right]
    return "\n".join(f"| {' | '.join(map(cell, row))} |" for row in (head, marks, *rows))
