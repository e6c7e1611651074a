"""Messages count one thing and many."""

from etude.wording import counted


def test_one_and_many() -> None:
    assert [counted(n, "file") for n in (0, 1, 2)] == ["0 files", "1 file", "2 files"]
    assert [counted(n, "piece is", "pieces are") for n in (1, 3)] == ["1 piece is", "3 pieces are"]
