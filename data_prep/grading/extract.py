"""Where the final answer of a response is: outside its thinking, in the last \\boxed{}.

The graders, the filters and the evaluation read responses through these functions only.
"""

import re
from collections import deque

from data_prep.thinking import THINK_CLOSE, THINK_OPEN

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def final_text(response: str) -> str | None:
    """What a response says after its thinking; None where the thinking was opened and never closed.

    A chat template may have put `<think>` into the prompt, so a `</think>` alone ends the thinking too.
    A response without any thinking is final as a whole.
    """
    final = response.rpartition(THINK_CLOSE)[2]
    return None if THINK_OPEN in final else final


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` or `\fbox{...}`, braces balanced, without surrounding spaces.

    Of nested boxes it is the innermost. Escaped braces (`\{`) do not count. None where there is no box, and
    where the last one is never closed: an earlier box was not the author's last word.
    """
    boxes = deque(_BOX.finditer(text), maxlen=1)
    if not boxes:
        return None
    last = boxes.pop()
    depth = 1
    for brace in _BRACE.finditer(text, last.end()):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return text[last.end() : brace.start()].strip()
    return None
