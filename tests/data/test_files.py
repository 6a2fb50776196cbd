"""Files that are whole or not there, outputs of one process, and names that stay in their folder."""

import os
import resource
import subprocess
import sys

import pytest

from itemized_clip_hf.data.files import explain_os_error, file_name, hold_output, whole_file, write_text
from itemized_clip_hf.data.studies.prepare.summary import write_page
from itemized_clip_hf.data.study import Skipped
from itemized_clip_hf.evaluation.score_file import ScoreFile

HOSTILE = (
    """../../x|/etc/passwd|CON|nul|con.txt|a/b|a\\b|a\nb|a\x00b|日本|中文||.|..|...|é|e\u0301|a b|a-b|a/b-|~|-rf|$(x)|a:b|
COM1|trail.|trail |\udcff""".split("|")
    + ["x" * 300, "x" * 301]
)


def test_names_of_files(tmp_path):
    names = [file_name(text) for text in HOSTILE]
    assert len({name.casefold() for name in names}) == len(HOSTILE)
    for name in names:
        assert name.isascii() and len(name) < 80 and name not in (".", "..") and not name.startswith("-")
        (tmp_path / name).write_text("x")
        assert (tmp_path / name).resolve().parent == tmp_path
        assert name.split(".")[0].lower() not in ("con", "nul", "com1")
    assert len(os.listdir(tmp_path)) == len(HOSTILE)
    for plain in ("study1", "AX_T1", "1.2.840.113", "007"):
        assert file_name(plain) == plain


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "a.json"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.json"]
    write_text(path, "new \udcff")
    assert path.read_text() == "new \\udcff"


def test_a_full_disk_damages_nothing(tmp_path):
    code = (
        "import resource, sys; from itemized_clip_hf.data.files import write_text\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)); write_text(sys.argv[1], 'x' * 5000)"
    )
    write_text(tmp_path / "a.json", "old")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.json")], capture_output=True, text=True)
    assert "File too large" in done.stderr
    assert (tmp_path / "a.json").read_text() == "old" and os.listdir(tmp_path) == ["a.json"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100
    assert "no room left to write" in explain_os_error(OSError(28, "No space left on device"))
    assert "no leave to use /x" in explain_os_error(PermissionError(30, "Read-only file system", "/x"))


def test_one_process_writes_an_output(tmp_path):
    code = "import sys; from itemized_clip_hf.data.files import hold_output\nwith hold_output(sys.argv[1]): pass"
    for target in (tmp_path, tmp_path / "scores.csv"):
        with hold_output(target):
            other = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True)
            assert "another process is writing" in other.stderr
        with hold_output(target):
            pass
    (tmp_path / ".part-1-old.png").write_text("of a killed process")
    with hold_output(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


def test_scores_of_a_killed_run(tmp_path):
    path = tmp_path / "s.jsonl"
    path.write_text('{"a": ')  # ended within the first line
    scores = ScoreFile(path, {"a": 1})
    scores.add("one", [0.1])
    scores.add("two\u2028\x85", [0.2])
    with path.open("a") as file:
        file.write('{"id": "thr')
    again = ScoreFile(path, {"a": 1})
    assert list(again.scores) == ["one", "two\u2028\x85"]
    with pytest.raises(ValueError, match="another model"):
        ScoreFile(path, {"a": 2})
    path.write_text('{"a": 1}\n{"id": "x", "scores": "no"}\n')
    with pytest.raises(ValueError, match="line 2: it is damaged"):
        ScoreFile(path, {"a": 1})


def test_the_summary_page_shows_what_it_is_given(tmp_path):
    bad = "<script>alert(1)</script>\"'&\udcff"
    counts = {"studies": 1, "normal": 0, "studies_left_out": 0, "files_left_out": 0, "scans": 1, "items": 1}
    spread = {"items_per_study": {"min": 1, "max": 1, "median": 1}}
    summary = {**counts, **spread, "domain": bad, "series": {bad: 1}, "warnings": {bad: 1}}
    write_page(
        tmp_path / "s.html", summary, [{"id": bad, "scans": [bad], "thumbnail": "AA"}], [Skipped(bad, bad, "read", bad)]
    )
    page = (tmp_path / "s.html").read_text()
    assert "<script" not in page and page.count("&lt;script&gt;") == 9
