"""Each bad file is listed one time with a count, and too many end the run."""

import json

import pytest

from snapvideo_jax.data import bad_records
from snapvideo_jax.errors import DataError


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_file_is_listed_one_time_with_a_count(tmp_path):
    path = tmp_path / "bad.jsonl"
    records = bad_records.BadRecords(path, 1.0)
    assert not path.exists()
    for name in ("a.mp4", "b.mp4", "a.mp4", "a.mp4"):
        records.bad(name, f"{name}: is empty")
        records.good()
    assert rows(path) == [
        {"path": "a.mp4", "reason": "a.mp4: is empty", "count": 3},
        {"path": "b.mp4", "reason": "b.mp4: is empty", "count": 1},
    ]
    bad_records.BadRecords(path, 1.0).bad("b.mp4", "is cut")  # a run that is resumed
    assert [(row["path"], row["count"]) for row in rows(path)] == [("a.mp4", 3), ("b.mp4", 2)]


def test_lists_without_counts_and_what_is_none_of_ours_are_read(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"path": "a", "reason": "x"}\n[]\n{\n{"path": "a", "reason": "y"}\n')
    bad_records.BadRecords(path, 1.0).bad("a", "z")
    assert rows(path) == [{"path": "a", "reason": "z", "count": 3}]


def test_more_than_the_share_of_the_last_thousand_end_the_run(tmp_path):
    path = tmp_path / "bad.jsonl"
    records = bad_records.BadRecords(path, 0.01)
    for k in range(1000):  # 1 %
        records.bad("a.mp4", "is cut") if k % 100 == 0 else records.good()
    records.good()  # the first of the bad ones is forgotten
    records.bad("b.mp4", "b.mp4: is cut")
    with pytest.raises(
        DataError, match=r"11 of the last 1000 files .*fraction=0\.01; .*b\.mp4: is"
    ):
        records.bad("b.mp4", "b.mp4: is cut")
    assert rows(path)[1]["count"] == 2
    few = bad_records.BadRecords(tmp_path / "few.jsonl", 0.0)
    for _ in range(999):
        few.bad("a", "is cut")
