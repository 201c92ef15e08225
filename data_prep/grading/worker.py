"""A grading worker: a process of its own that compares pairs of answers, started by `data_prep.grading.pool`.

One line in is a JSON list of pairs; one line out is the verdict on a pair, in order. A pair that takes longer
than the grader's limit in CPU time ends the process: the kernel kills it, whatever it is doing.
"""

import json
import resource
import signal
import sys

from pydantic import TypeAdapter

from data_prep.grading import Grader
from data_prep.grading.base import BaseGrader

MEMORY_BYTES = 4 * 2**30
"""Address space of a worker: a tower of powers may ask for more than any machine has."""


def main(configuration: str, task: str) -> None:
    """Serve until standard input ends. `task` is "grade" (right answer, answer) or "equivalent" (answer, answer)."""
    grader: BaseGrader = TypeAdapter(Grader).validate_json(configuration)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    grader.judge("1+1", "1+2")
    _say("ready")
    for line in sys.stdin:
        for first, second in json.loads(line):
            signal.setitimer(signal.ITIMER_PROF, grader.limit_s)
            if task == "equivalent":
                verdict = "correct" if grader.agree(first, second) else "wrong"
            else:
                verdict = grader.judge(first, second)
            signal.setitimer(signal.ITIMER_PROF, 0)
            _say(verdict)


def _say(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
