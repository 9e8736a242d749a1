"""Votes: the file survives what happens to files; the statistics are those of the papers and of hand calculation."""

from __future__ import annotations

import errno
import os
import threading

import numpy as np
import pytest

from lpm_jax.bench.agreement import fleiss_kappa, holm, krippendorff_alpha, majority, mean_interval, sign_test
from lpm_jax.bench.tally import by_rater, grades, pairs, preference, verdict
from lpm_jax.bench.votes import HEADER, UNDO, Vote, VoteFile, check_rater, read_votes, standing
from lpm_jax.errors import InputError

HEAD = ",".join(HEADER) + "\n"
ROW = "ann,2026-01-02T03:04:05+00:00,speaking-000,speaking,a,b,overall,left\n"


def vote(rater="ann", case="speaking-000", choice="left", dimension="overall", left="a", right="b", kind="speaking"):
    return Vote(rater, "2026-01-02T03:04:05+00:00", case, kind, left, right, dimension, choice)


# --- the file


def test_rows_are_as_agreed(tmp_path):
    file = VoteFile(tmp_path / "votes.csv")
    file.add(vote())
    file.add(vote("bob", choice="4", right=""))
    file.close()
    text = (tmp_path / "votes.csv").read_text()
    assert text == "rater,time,case,kind,left,right,dimension,choice\n" + ROW + ROW.replace("ann", "bob").replace(
        "a,b,overall,left", "a,,overall,4"
    )
    assert read_votes(tmp_path / "votes.csv") == [vote(), vote("bob", choice="4", right="")]


@pytest.mark.parametrize("cut", range(1, len(ROW)))
def test_a_half_line_is_dropped_and_nothing_else(tmp_path, cut):
    path = tmp_path / "votes.csv"
    path.write_text(HEAD + ROW + ROW.replace("ann", "bob")[:cut])
    whole = 2 if cut == len(ROW) - 1 else 1  # only the line's end is missing: all of the vote is there
    assert [v.rater for v in read_votes(path)] == ["ann", "bob"][:whole]
    file = VoteFile(path)
    assert file.cut == (0 if whole == 2 else cut)
    file.add(vote("cy"))
    file.close()
    assert [v.rater for v in read_votes(path)] == [*["ann", "bob"][:whole], "cy"]


@pytest.mark.parametrize("start", ["", "rater,ti", HEAD[:-1], HEAD])
def test_a_file_cut_in_its_header_begins_anew(tmp_path, start):
    path = tmp_path / "votes.csv"
    path.write_text(start)
    assert read_votes(path) == []
    file = VoteFile(path)
    file.add(vote())
    file.close()
    assert path.read_text() == HEAD + ROW


def test_a_table_programs_line_ends_and_mark_are_read(tmp_path):
    path = tmp_path / "votes.csv"
    path.write_bytes(b"\xef\xbb\xbf" + (HEAD + ROW).replace("\n", "\r\n").encode())
    assert read_votes(path) == [vote()]


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "votes.csv"
    file = VoteFile(path)
    file.add(vote())

    def full(_):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        file.add(vote("bob"))
    assert path.read_text() == HEAD + ROW and len(file.votes) == 1
    monkeypatch.undo()
    file.add(vote("bob"))
    file.close()
    assert len(read_votes(path)) == 2


def test_every_vote_is_synced_before_add_returns(tmp_path, monkeypatch):
    file = VoteFile(tmp_path / "votes.csv")
    sizes, real = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (sizes.append(os.fstat(handle).st_size), real(handle)))
    file.add(vote())
    assert sizes == [len(HEAD + ROW)]
    file.close()


def test_threads_do_not_mix_their_lines(tmp_path):
    file = VoteFile(tmp_path / "votes.csv")
    work = [
        threading.Thread(target=lambda k=k: [file.add(vote(f"r{k}", f"speaking-{i:03d}")) for i in range(20)])
        for k in range(5)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    file.close()
    assert by_rater(read_votes(tmp_path / "votes.csv")) == {f"r{k}": 20 for k in range(5)}


def test_a_second_writer_is_refused(tmp_path):
    pytest.importorskip("fcntl")
    file = VoteFile(tmp_path / "votes.csv")
    with pytest.raises(InputError, match="in use by another rating page"):
        VoteFile(tmp_path / "votes.csv")
    file.close()
    VoteFile(tmp_path / "votes.csv").close()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,grade\n", "votes.csv:1: expected rater,time,case"),
        (HEAD + "ann,x\n" + ROW, "votes.csv:2: expected 8 fields .* found 2"),
        (HEAD + ROW.replace(",left\n", ",best\n") + ROW, "votes.csv:2: choice: expected left, same, right, undo"),
        (
            HEAD + ROW + ROW.replace(",b,", ",,") + ROW,
            "votes.csv:3: choice: expected 1, 2, 3, 4, 5, undo, found 'left'",
        ),
        (HEAD + ROW.replace("overall", "beauty") + ROW, "votes.csv:2: dimension: expected motion dynamics"),
        (HEAD + ROW.replace(",a,b,", ",a,a,") + ROW, "votes.csv:2: expected a case and different runs"),
        (HEAD + ROW.replace("ann", "=1+1") + ROW, "votes.csv:2: rater: expected a name"),
    ],
)
def test_bad_lines_are_named_and_the_file_is_left_alone(tmp_path, text, message):
    path = tmp_path / "votes.csv"
    path.write_text(text)
    for work in (read_votes, VoteFile):
        with pytest.raises(InputError, match=message):
            work(path)
    assert path.read_text() == text


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "votes.csv").write_bytes(HEAD.encode() + b"\xff\xfe\n" + ROW.encode())
    with pytest.raises(InputError, match="votes.csv:2: expected a vote as UTF-8"):
        read_votes(tmp_path / "votes.csv")
    with pytest.raises(InputError, match="expected a file of votes, found nothing"):
        read_votes(tmp_path / "none.csv")
    with pytest.raises(InputError, match="--votes: expected an existing folder"):
        VoteFile(tmp_path / "none" / "votes.csv")


def test_names():
    assert check_rater("  Zoë   O'Hara-2 ") == "Zoë O'Hara-2"
    for bad in ("", "a,b", 'a"b', "@sum", "x" * 41, "a\0b", None, 3):
        with pytest.raises(InputError, match="rater: expected a name"):
            check_rater(bad)


def test_the_last_vote_stands_and_undo_takes_it_back():
    first, other = vote(), vote(dimension="motion dynamics")
    again = vote(choice="right", left="b", right="a")  # sides swapped: the same question
    assert standing([first, other]) == [first, other]
    assert standing([first, other, again]) == [other, again]
    assert standing([first, other, vote(choice=UNDO)]) == [other]
    assert standing([first, vote(choice=UNDO), again]) == [again]


# --- statistics


def test_fleiss_kappa_of_the_textbook_table():
    """Ten subjects, fourteen raters, five categories: P = 0.378, Pe = 0.213, kappa = 0.210."""
    table = """0 0 0 0 14 / 0 2 6 4 2 / 0 0 3 5 6 / 0 3 9 2 0 / 2 2 8 1 1
               7 7 0 0 0 / 3 2 6 3 0 / 2 5 3 2 2 / 6 5 2 1 0 / 0 2 2 3 7"""
    counts = np.array([row.split() for row in table.replace("\n", "/").split("/")], int)
    assert fleiss_kappa(counts) == pytest.approx(0.210, abs=5e-4)


def test_fleiss_kappa_by_hand():
    # P = (1 + 1/3) / 2 = 2/3; frequencies 4/6, 2/6 -> Pe = 5/9; kappa = (2/3 - 5/9) / (4/9) = 1/4
    assert fleiss_kappa(np.array([[3, 0, 0], [1, 2, 0]])) == pytest.approx(0.25)
    assert fleiss_kappa(np.array([[3, 0, 0], [0, 3, 0]])) == pytest.approx(1.0)
    # P = 0 (nobody agrees), Pe = 1/3
    assert fleiss_kappa(np.array([[1, 1, 1]])) == pytest.approx(-0.5)
    assert fleiss_kappa(np.array([[3, 0, 0], [3, 0, 0]])) is None  # chance would agree as well
    assert fleiss_kappa(np.zeros((0, 3), int)) is None
    assert fleiss_kappa(np.array([[1, 0, 0]])) is None


def test_krippendorff_alpha_of_his_example():
    """Krippendorff 2011, section C and D: 4 observers, 12 units, missing values; ordinal alpha is 0.815."""
    rows = ["1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3", ". 3 3 3 2 3 4 2 2 5 1 .", "1 2 3 3 2 4 4 1 2 5 1 ."]
    units = zip(*(row.split() for row in rows), strict=True)
    assert krippendorff_alpha([[int(v) for v in unit if v != "."] for unit in units]) == pytest.approx(0.815, abs=5e-4)


def test_krippendorff_alpha_by_hand():
    """Two units, (1, 1) and (1, 2): totals 3 and 1, one disagreeing pair in each direction of 4 values.

    With two grades the distance is one constant d: Do = 2/4 d, De = 2 * 3 * 1 / (4 * 3) d = d/2, alpha = 0."""
    assert krippendorff_alpha([[1, 1], [1, 2]]) == pytest.approx(0.0)
    assert krippendorff_alpha([[1, 1], [5, 5]]) == pytest.approx(1.0)
    assert krippendorff_alpha([[1, 1], [5, 5], [3]]) == pytest.approx(1.0)  # nothing to pair the 3 with
    assert krippendorff_alpha([[4, 4], [4, 4]]) is None and krippendorff_alpha([[1], [2]]) is None


def test_majority_and_verdict():
    assert majority(["left", "left", "right"], 3) == "left"
    assert majority(["left", "right"], 3) is None and majority(["left"], 3) is None and majority([], 3) is None
    assert majority(["left"], 1) == "left"
    assert verdict(["good", "good"], 3) == ("good", False)  # the third cannot change it
    assert verdict(["good", "bad"], 3) == (None, False)
    assert verdict(["good", "same", "bad"], 3) == ("same", True)


def test_intervals_and_tests():
    values = np.random.default_rng(1).normal(5, 2, 200)
    mean, low, high = mean_interval(values)
    assert mean == pytest.approx(values.mean())
    error = 1.96 * values.std(ddof=1) / 200**0.5  # normal theory, which the bootstrap must come near to
    assert (mean - low, high - mean) == (pytest.approx(error, rel=0.1), pytest.approx(error, rel=0.1))
    assert mean_interval(values) == (mean, low, high)
    assert mean_interval([3.0]) == (3.0, None, None) and mean_interval([]) == (None, None, None)
    assert sign_test(8, 2) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert sign_test(2, 8) == sign_test(8, 2) and sign_test(3, 3) == 1.0 and sign_test(5, 0) == pytest.approx(2 / 32)
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06]) and holm([]) == []


def test_preference_by_hand():
    items = [["good"] * 3, ["good", "good", "bad"], ["bad", "bad"], ["good", "same", "bad"], ["good"]]
    found = preference(items, 3)
    assert (found.good, found.same, found.bad) == (0.5, 0.25, 0.25)
    assert (found.decided, found.split, found.waiting, found.rated_by_all) == (4, 1, 1, 3)
    assert found.net[0] == pytest.approx(0.25)
    # three cases rated by all: P = (1 + 1/3 + 0) / 3 = 4/9; frequencies 6/9, 1/9, 2/9: Pe = 41/81; kappa = -1/8
    assert found.kappa == pytest.approx((4 / 9 - 41 / 81) / (1 - 41 / 81)) == pytest.approx(-0.125)


def test_sides_do_not_matter_to_the_tables():
    votes = [
        vote("ann", choice="left"),
        vote("bob", choice="right", left="b", right="a"),
        vote("cy", choice="same"),
        vote("ann", "listening-001", "right", kind="listening"),
        vote("bob", "listening-001", "left", left="b", right="a", kind="listening"),
        vote("cy", "listening-001", "right", left="c"),  # of another pair
        vote("ann", "speaking-000", "5", right=""),
        vote("bob", "speaking-000", "4", right=""),
        vote("ann", "listening-001", "2", right="", kind="listening"),
        vote("ann", "speaking-000", "1", left="b", right=""),
    ]
    found = pairs(votes, "a", 3)
    assert list(found) == ["b"]
    every = found["b"]["all", "overall"]
    assert (every.good, every.same, every.bad, every.decided) == (0.5, 0.0, 0.5, 2)
    assert found["b"]["speaking", "overall"].good == 1.0 and found["b"]["listening", "overall"].bad == 1.0
    assert pairs(votes, "b", 3)["a"]["all", "overall"].bad == 0.5
    graded = grades(votes, "a")
    assert graded["all", "overall"].mean == pytest.approx((4.5 + 2) / 2) and graded["all", "overall"].votes == 3
    assert graded["speaking", "overall"].mean == 4.5 and graded["listening", "overall"].low is None
    assert by_rater(votes) == {"ann": 5, "bob": 3, "cy": 2}
