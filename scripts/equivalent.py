"""Mutants that change nothing a test could see, by file and change, with the reason."""

EQUIVALENT: dict[tuple[str, str], str] = {}
