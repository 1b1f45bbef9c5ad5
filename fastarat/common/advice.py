"""Commands in messages, written so that they can be pasted into a shell."""

import shlex
from pathlib import Path


def command(*words: object) -> str:
    """`fastarat` with these words, each quoted for a shell where needed, between marks that do not stand in it; a path
    is never taken for a flag."""
    named = [f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word) for word in words]
    text = f"fastarat {shlex.join(named)}"
    mark = next((mark for mark in "'\"`" if mark not in text), " ")
    return f"{mark}{text}{mark}"
