"""Wording of messages; every folder may import it."""


def counted(number: int, one: str, many: str | None = None) -> str:
    """Returns "1 file" or "3 files": the number with `one` or with `many` after it.

    many: None for `one` with an s. A verb that depends on the number is part of both: "file is left out", "files are left out".
    """
    return f"{number} {one if number == 1 else many or f'{one}s'}"
