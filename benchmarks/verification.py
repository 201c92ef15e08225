"""`python -m benchmarks.verification`: our math grader beside math-verify alone, over generated answers of many kinds.

Both run in this one process on the same responses, block by block in turns, and CPU seconds are counted. math-verify
alone is `verify(parse(right), parse(response))`, with its own time limits. Every disagreement is explained by a rule of
`data_prep.grading.strictness`, or, where a response has several boxes, by math-verify's own verdict on the last of
them; one that is not explained makes the exit status 1. With `--samples FILE` (jsonl with `answer` and `response`)
the rows of a file are graded instead.
"""

import argparse
import logging
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from random import Random

from data_prep.grading import MathVerifyGrader, Verdict, last_boxed
from reasonforge.files import read_jsonl

BLOCK = 50
Sample = tuple[str, str, str]
"""Kind, right answer, response."""


@dataclass
class Result:
    """What was measured and found."""

    ours_s: float = 0.0
    theirs_s: float = 0.0
    samples: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=4000, help="generated samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=Path, help="grade the rows of this file instead")
    options = parser.parse_args()
    if options.samples:
        samples = [("file", str(row["answer"]), str(row["response"])) for row in read_jsonl(options.samples)]
    else:
        samples = list(generate(options.count, options.seed))
    for name in ("math_verify.parser", "math_verify.grader", "latex2sympy2_extended"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    result = compare(samples)
    report(result, Counter(kind for kind, _, _ in samples))
    sys.exit(1 if result.reasons["not documented"] else 0)


def compare(samples: list[Sample]) -> Result:
    """Grade all samples in both ways, in turns of `BLOCK`."""
    grader, result = MathVerifyGrader(), Result(samples=len(samples))
    warm = r"\boxed{\frac{x+1}{2}}"
    grader.grade(warm, r"\frac{1+x}{2}")
    math_verify(r"\frac{1+x}{2}", warm)
    for start in range(0, len(samples), BLOCK):
        block = samples[start : start + BLOCK]
        turns = [("ours", lambda s: grader.grade(s[2], s[1]).verdict), ("theirs", lambda s: math_verify(s[1], s[2]))]
        found: dict[str, list[Verdict]] = {}
        for name, grade in turns if start // BLOCK % 2 else turns[::-1]:
            found[name], seconds = timed(grade, block)
            setattr(result, f"{name}_s", getattr(result, f"{name}_s") + seconds)
        for sample, ours, theirs in zip(block, found["ours"], found["theirs"], strict=True):
            if (ours == "correct") != (theirs == "correct"):
                reason = why(grader, sample, ours)
                result.reasons[reason] += 1
                result.examples[reason].append(f"{sample[0]}: {sample[1]!r} / {sample[2][-60:]!r} ours {ours}")
    return result


def timed(grade: Callable[[Sample], Verdict], block: list[Sample]) -> tuple[list[Verdict], float]:
    """The verdicts of a block, and the CPU seconds that they took."""
    start = time.process_time()
    verdicts = [grade(sample) for sample in block]
    return verdicts, time.process_time() - start


def math_verify(right: str, response: str) -> Verdict:
    """math-verify alone, as its README calls it."""
    from math_verify import parse, verify

    try:
        return "correct" if verify(parse(f"\\boxed{{{right}}}"), parse(response)) else "wrong"
    except TimeoutError:
        return "timeout"


def why(grader: MathVerifyGrader, sample: Sample, ours: Verdict) -> str:
    """The documented rule behind a disagreement."""
    _, right, response = sample
    if rule := grader.explain(response, right, ours):
        return rule
    answer = last_boxed(response.rpartition("</think>")[2])
    alone = math_verify(right, f"\\boxed{{{answer}}}")
    return "final box" if (alone == "correct") == (ours == "correct") else "not documented"


def report(result: Result, kinds: Counter[str]) -> None:
    """Print both tables, and every disagreement that no rule explains."""
    print(f"{result.samples} samples: " + ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())))
    print("\n| | CPU-s | samples per CPU-s |\n|---|---|---|")
    for name, seconds in (("math-verify alone", result.theirs_s), ("ours", result.ours_s)):
        print(f"| {name} | {seconds:.2f} | {result.samples / seconds:.0f} |")
    print(f"\n{result.theirs_s / result.ours_s:.2f} times fewer CPU seconds (target 2.5)")
    print("\n| disagreement: rule | samples | for example |\n|---|---|---|")
    for reason, count in sorted(result.reasons.items()):
        print(f"| {reason} | {count} | {result.examples[reason][0]} |".replace("\n", " "))
    for example in result.examples.get("not documented", []):
        print("NOT DOCUMENTED", example)


def generate(count: int, seed: int) -> Iterator[Sample]:
    """Samples of all kinds, the weights being those of the table `KINDS`."""
    rng = Random(seed)
    kinds = [kind for kind, weight in KINDS.items() for _ in range(weight)]
    for _ in range(count):
        kind = rng.choice(kinds)
        right, answer = MAKERS[kind](rng)
        thinking = f"<think>\nLet me see, {rng.randint(1, 99)} + {rng.randint(1, 99)}.\n"
        if kind == "thinking":
            yield kind, right, f"{thinking}So \\boxed{{{right}}}?\n</think>\nThe answer is \\boxed{{{answer}}}."
        elif kind == "plain text":
            yield kind, right, f"{thinking}</think>\nThe answer is ${answer}$."
        else:
            yield kind, right, f"{thinking}</think>\nThus the answer is $\\boxed{{{answer}}}$."


KINDS = {
    "integer": 30, "decimal": 8, "fraction": 12, "spelling": 6, "surd": 8, "polynomial": 8, "interval": 4, "tuple": 6,
    "text": 3, "unit": 3, "percent": 2, "gamed": 3, "thinking": 2, "equation": 3, "plain text": 2,
}  # fmt: skip
"""Of 100: about as final answers of competition and school problems are spread, with some that game the verifier."""


def _integer(rng: Random) -> tuple[str, str]:
    right = rng.choice([rng.randint(-50, 50), rng.randint(0, 1000), rng.randint(10**3, 10**7)])
    return str(right), str(right if rng.random() < 0.6 else right + rng.randint(-9, 9))


def _decimal(rng: Random) -> tuple[str, str]:
    right = Fraction(rng.randint(-(10**5), 10**5), 10 ** rng.randint(1, 4))
    shown = f"{float(right):.{rng.randint(2, 7)}f}"
    return str(float(right)), rng.choice([str(float(right)), shown, str(float(right + Fraction(1, 100)))])


def _fraction(rng: Random) -> tuple[str, str]:
    top, bottom, times = rng.randint(-60, 60), rng.randint(2, 40), rng.randint(1, 4)
    others = (f"\\dfrac{{{top}}}{{{bottom}}}", f"{top}/{bottom}", f"\\frac{{{top * times}}}{{{bottom * times}}}")
    wrong = f"\\frac{{{top + 1}}}{{{bottom}}}"
    return f"\\frac{{{top}}}{{{bottom}}}", rng.choice([*others, f"{top / bottom:.6f}", wrong])


def _spelling(rng: Random) -> tuple[str, str]:
    right = rng.randint(1000, 10**6)
    tail = f"{right % 1000:03d}"
    forms = (f"{right:,}", f"{right // 1000}\\,{tail}", f"{right // 1000}{{,}}{tail}", f"x = {right}", f"\\mathbf{{{right}}}")  # noqa: E501 # fmt: skip
    return str(right), rng.choice([*forms, f"{right}.", f"\\text{{{right}}}", f"{right}.0", f" {right} "])


def _surd(rng: Random) -> tuple[str, str]:
    a, b = rng.randint(2, 12), rng.choice([2, 3, 5, 6, 7])
    same = (f"{a}\\sqrt{{{b}}}", f"\\sqrt{{{a * a * b}}}", f"\\frac{{{a * b}}}{{\\sqrt{{{b}}}}}")
    return same[0], rng.choice([*same, f"{a + 1}\\sqrt{{{b}}}", f"{(a * a * b) ** 0.5:.7f}", f"{a}\\pi"])


def _polynomial(rng: Random) -> tuple[str, str]:
    a, b = rng.randint(-9, 9), rng.randint(-9, 9)
    right = f"x^2 + {a + b}x + {a * b}".replace("+ -", "- ")
    product = f"(x + {a})(x + {b})".replace("+ -", "- ")
    return right, rng.choice([right, product, f"f(x) = {right}", product.replace("x", "y"), f"{right} + 1"])


def _interval(rng: Random) -> tuple[str, str]:
    a = rng.randint(-9, 9)
    b = a + rng.randint(1, 9)
    same = (f"({a},{b})", f"{a} < x < {b}", f"({a}, {b})", f"\\left({a}, {b}\\right)", f"x \\in ({a}, {b})")
    return rng.choice(same[:2]), rng.choice([*same, f"[{a}, {b}]", f"({a}, {b + 1})"])


def _tuple(rng: Random) -> tuple[str, str]:
    a, b = rng.sample(range(-20, 20), 2)
    left, right = rng.choice([("(", ")"), ("\\{", "\\}"), ("", "")])
    pairs = (f"{a}, {b}", f"{a},{b}", f"{b}, {a}", f"{a}, {b - 1}+1", f"{a}, {b}, {a}", f"x={a}, y={b}")
    return f"{left}{a}, {b}{right}", left + rng.choice(pairs) + right


def _text(rng: Random) -> tuple[str, str]:
    words = ("Tuesday", "B", "C", "even", "Alice", "no solution")
    right = rng.choice(words)
    return f"\\text{{{right}}}", rng.choice([right, f"\\text{{{right}}}", f"({right})", rng.choice(words)])


def _unit(rng: Random) -> tuple[str, str]:
    value, unit, other = rng.randint(1, 200), *rng.sample(["cm", "m", "kg", "s"], 2)
    form = rng.choice(["{} {}", "{} \\text{{ {}}}", "{}\\mathrm{{~{}}}"])
    return f"{value} \\text{{ {unit}}}", rng.choice([form.format(value, unit), form.format(value, other), str(value)])


def _percent(rng: Random) -> tuple[str, str]:
    value = rng.randint(1, 99)
    return rng.choice([f"{value}\\%", str(value), str(value / 100)]), rng.choice([f"{value}\\%", f"{value} \\%"])


def _gamed(rng: Random) -> tuple[str, str]:
    right = rng.randint(10, 99)
    a = rng.randint(1, right - 1)
    return str(right), rng.choice(
        [f"{a}+{right - a}", f"{right + 1}={right}", f"{right * 2}/2", f"\\sqrt{{{right**2}}}", f"{right}_2",
         f"{right},{right}", f"-(-{right})", f"{right} \\pm 0", f"|{right}|", f"{right}:1", f"{right} \\cdot 1"]
    )  # fmt: skip


def _thinking(rng: Random) -> tuple[str, str]:
    right = rng.randint(1, 500)
    return str(right), str(right + rng.randint(0, 2))


def _equation(rng: Random) -> tuple[str, str]:
    a, b = rng.randint(1, 9), rng.randint(2, 9)
    right = f"{a} + \\sqrt{{{b * b + 1}}}"
    return right, rng.choice([f"x = {right}", f"43 = {right}", f"x = 43 = {right}", f"{right} = x", right])


MAKERS: dict[str, Callable[[Random], tuple[str, str]]] = {
    "integer": _integer, "decimal": _decimal, "fraction": _fraction, "spelling": _spelling, "surd": _surd,
    "polynomial": _polynomial, "interval": _interval, "tuple": _tuple, "text": _text, "unit": _unit,
    "percent": _percent, "gamed": _gamed, "thinking": _thinking, "equation": _equation, "plain text": _integer,
}  # fmt: skip


if __name__ == "__main__":
    main()
