"""Commands in messages, written so that they can be pasted into a shell."""

import shlex


def command(*words: object) -> str:
    """`fastarat` with these words in quotes, each quoted for a shell where that is needed."""
    return repr(f"fastarat {shlex.join(map(str, words))}")
