"""Commands in messages, written so that they can be pasted into a shell."""

import shlex


def command(*words: object) -> str:
    """`fastarat` with these words, each quoted for a shell where needed, between marks that do not stand in it."""
    text = f"fastarat {shlex.join(map(str, words))}"
    mark = next((mark for mark in "'\"`" if mark not in text), " ")
    return f"{mark}{text}{mark}"
