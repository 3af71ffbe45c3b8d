"""benchmarks/rows.py: what is measured, what is taken from the file, and what is printed."""

import pytest

from measures import read, write
from rows import fill

COLUMNS = {"network": "{network}", "time": "{ms:.1f} ms"}


def job(name, batch=1):
    return {"network": name, "batch": batch}


def measured(*jobs, path=None):
    """The jobs that were measured on the way, and the rows."""
    seen = []

    def measure(job, tell):
        tell()
        seen.append(job)
        return {"ms": float(len(seen))}

    return seen, fill(COLUMNS, jobs, measure, 1, path)


def test_a_row_is_its_job_and_what_was_measured(capsys):
    seen, rows = measured(job("one"), job("two"))
    assert seen == [job("one"), job("two")]
    assert rows == [job("one") | {"ms": 1.0}, job("two") | {"ms": 2.0}]
    printed = capsys.readouterr().out
    assert "| network | time |\n| --- | --- |\n| one | 1.0 ms |\n| two | 2.0 ms |\n" in printed


def test_a_run_goes_on_where_it_ended(tmp_path, capsys):
    """A row of other settings is another row, and what nobody asks for stays in the file."""
    path = tmp_path / "rows.json"
    known = [job("one") | {"ms": 7.0}, job("two", batch=16) | {"ms": 8.0}]
    write(path, known)
    seen, rows = measured(job("two"), job("one"), path=path)
    assert seen == [job("two")]
    assert rows == [job("two") | {"ms": 1.0}, known[0]]
    assert read(path) == [*known, rows[0]]


def test_what_was_measured_is_kept_when_the_next_one_fails(tmp_path, capsys):
    path = tmp_path / "rows.json"

    def measure(job, tell):
        if job["network"] == "two":
            raise RuntimeError
        return {"ms": 1.0}

    with pytest.raises(RuntimeError):
        fill(COLUMNS, [job("one"), job("two")], measure, 1, path)
    assert read(path) == [job("one") | {"ms": 1.0}]
