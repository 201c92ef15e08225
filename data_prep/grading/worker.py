"""A grading worker: a process of its own that compares pairs of answers, started by `data_prep.grading.pool`.

One line in is a JSON list of pairs (right answer, answer); one line out is the verdict on a pair, in order, or an error
for the user (JSON: the parts of a RequestError, or one text). A pair that takes longer than the grader's limit in CPU
time ends the process: the kernel kills it, whatever it is doing.
"""

import json
import resource
import signal
import sys
from collections.abc import Sequence

from pydantic import TypeAdapter

from data_prep.grading import Grader
from data_prep.grading.base import BaseGrader
from data_prep.grading.pool import ERROR
from reasonforge.errors import ReasonforgeError, RequestError

MEMORY_BYTES = 4 * 2**30
"""Address space of a worker: a tower of powers may ask for more than any machine has."""


def main(configuration: str) -> None:
    """Serve until standard input ends."""
    grader: BaseGrader = TypeAdapter(Grader).validate_json(configuration)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        grader.warm_up()
        _say("ready")
        for line in sys.stdin:
            _serve(grader, json.loads(line))
    except RequestError as error:
        _say(ERROR + json.dumps([error.where, error.problem, error.remedy]))
    except ReasonforgeError as error:
        _say(ERROR + json.dumps([str(error)]))


def _serve(grader: BaseGrader, pairs: Sequence[tuple[str, str]]) -> None:
    verdicts = grader.judge_all(pairs)
    for _ in pairs:
        signal.setitimer(signal.ITIMER_PROF, grader.limit_s)
        verdict = next(verdicts)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _say(verdict)


def _say(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
