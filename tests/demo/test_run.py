"""The demo itself: the merges keep both skills."""

from __future__ import annotations

from mergeloom.demo import run as demo


def test_the_merges_keep_both_skills(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "PROBLEMS", 100)
    printed: list[str] = []
    rows = demo.run(tmp_path, printed.append)
    assert [row.name for row in rows] == ["base", "add", "sort", *demo.recipes()]
    good = [row for row in rows[3:] if min(row.accuracy.values()) > 0.8]
    assert len(good) >= 5
    assert "\n".join(printed).count("%") > 2 * len(rows)
    assert all(row.seconds is not None and row.seconds < 30 for row in rows[3:])
    for folder in tmp_path.iterdir():
        assert (folder / "config.json").is_file()


def test_the_table_is_aligned():
    rows = [
        demo.Row("base", {"add": 0.0, "sort": 1.0}),
        demo.Row("linear", {"add": 1.0, "sort": 0.5}, 1.25),
    ]
    assert demo.table(rows, ["add", "sort"]).splitlines() == [
        "           add    sort   seconds",
        "base      0.0%  100.0%",
        "linear  100.0%   50.0%      1.25",
    ]
