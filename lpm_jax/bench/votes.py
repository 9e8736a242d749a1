"""Votes in a CSV file: one row a vote, only ever added to.

``rater,time,case,kind,left,right,dimension,choice``. Of a pair, ``choice`` is left, same or right, and ``left`` and
``right`` are the names of the runs as they were shown; of a Likert grade it is 1 to 5, ``left`` the run and ``right``
empty. ``undo`` takes back the vote on the same question. Of several votes on one question the last one stands.
"""

from __future__ import annotations

import csv
import datetime
import io
import os
import re
import threading
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from lpm_jax.bench.schema import KINDS
from lpm_jax.errors import InputError, one_line

DIMENSIONS = (
    "motion dynamics",
    "identity consistency",
    "text controllability",
    "audio-video sync",
    "overall",
)
SIDES = ("left", "same", "right")
GRADES = ("1", "2", "3", "4", "5")
UNDO = "undo"
_RATER = re.compile(r"\w[\w .'-]{0,39}")  # begins with a letter or digit: a spreadsheet takes =, + and @ for formulas


@dataclass(frozen=True)
class Vote:
    """One row of the file."""

    rater: str
    time: str  # UTC, ISO 8601
    case: str
    kind: str  # of the case
    left: str
    right: str  # "" of a Likert grade
    dimension: str
    choice: str

    @property
    def question(self) -> tuple[str, str, tuple[str, ...], str]:
        """What was asked, and whom: two votes with the same are one question's. Sides do not matter."""
        return self.rater, self.case, tuple(sorted((self.left, self.right))), self.dimension


HEADER = tuple(field.name for field in fields(Vote))


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def check_rater(name: object, where: str = "rater") -> str:
    """A rater's name, spaces tidied; ``InputError`` for one that a CSV file or a table could stumble over."""
    tidy = " ".join(str(name).split())
    if not isinstance(name, str) or not _RATER.fullmatch(tidy):
        raise InputError(
            f"{where}: expected a name of 1 to 40 letters, digits, spaces, '.', '-' or ', found {name!r:.60}"
        )
    return tidy


def standing(votes: Iterable[Vote]) -> list[Vote]:
    """The last vote on each question, in the order they were given; without those taken back."""
    last: dict[tuple, Vote] = {}
    for vote in votes:
        last.pop(vote.question, None)
        if vote.choice != UNDO:
            last[vote.question] = vote
    return list(last.values())


def _line(row: Iterable[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(row)
    return text.getvalue()


def _parse(line: str, where: str) -> Vote:
    row = next(csv.reader([line]), [])
    if len(row) != len(HEADER):
        raise InputError(f"{where}: expected {len(HEADER)} fields ({','.join(HEADER)}), found {len(row)}")
    vote = Vote(*row)
    expected = (*(SIDES if vote.right else GRADES), UNDO)
    checks = (("kind", KINDS), ("dimension", DIMENSIONS), ("choice", expected))
    for name, allowed in checks:
        if getattr(vote, name) not in allowed:
            raise InputError(f"{where}: {name}: expected {', '.join(allowed)}, found {getattr(vote, name)[:40]!r}")
    if not vote.case or not vote.left or vote.left == vote.right:
        raise InputError(
            f"{where}: expected a case and different runs, found {vote.case!r}, {vote.left!r}, {vote.right!r}"
        )
    check_rater(vote.rater, f"{where}: rater")
    return vote


def read_votes(path: str | Path) -> list[Vote]:
    """Every row of the file, in order. A half-written last line, from a machine that went off, counts as not given.

    Raises:
      InputError: there is no such file, or a line is not a vote (which one, and why).
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: expected a file of votes, found nothing there") from None
    except OSError as error:
        raise InputError(f"{path}: expected a file of votes, found {error.strerror}") from None
    return _read(data, str(path))[0]


def _read(data: bytes, name: str) -> tuple[list[Vote], int]:
    """The votes, and how many bytes of ``data`` hold them."""
    lines = data.split(b"\n")
    votes, end = [], 0
    for i, raw in enumerate(lines):
        whole = i < len(lines) - 1
        try:
            line = raw.decode("utf-8-sig" if i == 0 else "utf-8").removesuffix("\r")
            if i == 0:
                _check_header(line, whole, name)
            elif line:
                votes.append(_parse(line, f"{name}:{i + 1}"))
        except (UnicodeDecodeError, InputError, csv.Error) as error:
            if not whole and i > 0:
                break
            if isinstance(error, InputError):
                raise
            raise InputError(f"{name}:{i + 1}: expected a vote as UTF-8 text, found {one_line(error, 80)}") from None
        end += len(raw) + whole
    return votes, end


def _check_header(line: str, whole: bool, name: str) -> None:
    header = ",".join(HEADER)
    if line != header and (whole or not header.startswith(line)):
        raise InputError(f"{name}:1: expected {header}, found {line[:80]!r}")


class VoteFile:
    """The file that one rating page adds to. Safe to use from several threads; a second page is refused.

    A vote is on the disk (fsync) when :meth:`add` returns; if that fails the file is as before. A half-written last
    line found when opening was never confirmed to anyone and is cut off.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        if not self.path.parent.is_dir():
            raise InputError(f"--votes: expected an existing folder, found none at {str(self.path.parent)!r}")
        try:
            self._file = self.path.open("a+b", buffering=0)
        except OSError as error:
            raise InputError(
                f"--votes: expected a file that can be written, found {self.path}: {error.strerror}"
            ) from None
        try:
            _only_writer(self._file, self.path)
            self._file.seek(0)
            data = self._file.read()
            self.votes, end = _read(data, str(self.path))
            self.cut = len(data) - end  # bytes of a half-written line
            self._repair(data, end)
        except BaseException:
            self._file.close()
            raise

    def _repair(self, data: bytes, end: int) -> None:
        header = _line(HEADER).encode()
        if b"\n" not in data:  # new, or not even the header was finished
            self._file.truncate(0)
            self._write(header)
            _sync_folder(self.path.parent)
            return
        if self.cut:
            self._file.truncate(end)
        elif not data.endswith(b"\n"):  # whole, but someone's editor left out the last line's end
            self._write(b"\n")

    def _write(self, data: bytes) -> None:
        size = os.fstat(self._file.fileno()).st_size
        try:
            written = self._file.write(data)
            if written != len(data):
                raise OSError(f"{written} of {len(data)} bytes were written")
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(size)  # a full disk: no half line stays
            raise

    def add(self, vote: Vote) -> None:
        """Append a vote and wait until the disk has it. ``OSError`` when it could not be saved."""
        line = _line(astuple(vote)).encode()
        with self._lock:
            _parse(line.decode().rstrip("\n"), str(self.path))
            self._write(line)
            self.votes.append(vote)

    def standing(self) -> list[Vote]:
        with self._lock:
            return standing(self.votes)

    def close(self) -> None:
        self._file.close()


def _only_writer(file: io.FileIO, path: Path) -> None:
    """Two pages on one file would not see each other's votes."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise InputError(f"--votes: expected a file of its own, found {path} in use by another rating page") from None


def _sync_folder(folder: Path) -> None:
    """The new file's name must outlast a power cut as well."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
