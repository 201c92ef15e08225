"""The engine of explain: root against cascade, tracebacks, ranks, and logs that no program should choke on."""

import io
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from reasonforge.errors import RequestError
from slurm.explain.engine import CAUSES, Diagnosis, Facts, explain, log_of_text
from slurm.explain.lines import blocks, node_of, rank_of, split, time_of
from slurm.explain.rules import Rule, Table
from slurm.explain.table import read_table

WATCHDOG = (
    "[rank{0}]:[E1120 12:31:00.1 ProcessGroupNCCL.cpp:632] [Rank {0}] Watchdog caught collective operation timeout: "
    "WorkNCCL(SeqNum=5, OpType=ALLREDUCE, Timeout(ms)=1800000) ran for 1800001 milliseconds before timing out."
)
OOM = "[rank3]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
CANCELLED = "slurmstepd: error: *** STEP 7.0 ON node2 CANCELLED AT 2026-11-20T12:31:05 ***"


@cache
def table() -> Table:
    return read_table()


def said(*texts: str, facts: tuple[Facts, ...] = ()) -> Diagnosis:
    return explain(table(), [log_of_text(text, f"log {number}") for number, text in enumerate(texts)], facts)


def traceback(last: str, *frames: str) -> str:
    shown = "".join(f'  File "{frame}", line 7, in f\n    code()\n' for frame in frames or ("train.py",))
    return f"Traceback (most recent call last):\n{shown}{last}\n"


def test_an_out_of_memory_on_one_rank_is_the_root_of_the_timeouts_on_the_others() -> None:
    found = said("\n".join([WATCHDOG.format(0), OOM, WATCHDOG.format(1), CANCELLED]))
    assert (found.cause, found.where and found.where.rank) == ("cuda_oom", 3)
    assert set(found.cascade) == {"nccl_timeout", "user_cancelled"}
    assert found.lines[0] == OOM


def test_a_cancellation_alone_is_the_users() -> None:
    assert said(CANCELLED).cause == "user_cancelled"
    assert said(CANCELLED.replace(" ***", " DUE TO TIME LIMIT ***")).cause == "time_limit"
    assert said(CANCELLED.replace(" ***", " DUE TO PREEMPTION ***")).cause == "preempted"
    assert said(CANCELLED.replace(" ***", " DUE TO NODE FAILURE, SEE SLURMCTLD LOG ***")).cause == "node_fail"


def test_what_comes_after_the_time_limit_is_its_cascade_and_a_hang_before_it_is_its_root() -> None:
    limit = CANCELLED.replace(" ***", " DUE TO TIME LIMIT ***")
    assert said(f"{limit}\n{WATCHDOG.format(0)}").cause == "time_limit"
    assert said(f"{WATCHDOG.format(0)}\n{limit}").cause == "nccl_timeout"


def test_the_first_exception_of_a_chain_is_the_root() -> None:
    chain = (
        traceback("RuntimeError: CUDA error: out of memory")
        + "\nDuring handling of the above exception, another exception occurred:\n\n"
        + traceback("ValueError: batch_size must be positive")
    )
    assert said(chain).cause == "cuda_oom"
    direct = (
        traceback("OSError: [Errno 116] Stale file handle")
        + "\nThe above exception was the direct cause of the following exception:\n\n"
        + traceback("datasets.exceptions.DatasetGenerationError: An error occurred while generating the dataset")
    )
    found = said(direct)
    assert (found.cause, found.cascade) == ("filesystem", ("data_error",))


def test_the_specific_beats_the_general_whatever_comes_first() -> None:
    chain = traceback("KeyError: 'lr'") + traceback("omegaconf.errors.ConfigKeyError: Missing key lr")
    assert said(chain).cause == "config_error"


def test_an_ordinary_bug_is_one_and_a_wrapper_is_none() -> None:
    wrapper = "torch.distributed.elastic.multiprocessing.errors.ChildFailedError:\ntrain.py FAILED\n  exitcode  : 1"
    found = said(traceback("TypeError: f() got an unexpected keyword argument 'x'") + wrapper)
    assert (found.cause, found.where and found.where.code) == ("python_bug", "train.py:7")
    assert said(wrapper).cause == "unknown"
    assert said("subprocess.CalledProcessError: Command 'x' returned non-zero exit status 1.").cause == "unknown"


def test_an_exception_ignored_by_python_is_ignored_here() -> None:
    text = "Exception ignored in: <function Pool.__del__>\n" + traceback("AttributeError: 'NoneType' has no attribute")
    assert said(text).cause == "unknown"


def test_interleaved_tracebacks_of_ranks_are_kept_apart() -> None:
    lines = zip(
        (f"[rank0]: {line}" for line in traceback("TypeError: a bug", "/w/megatron/model.py").splitlines()),
        (f"[rank1]: {line}" for line in traceback("ValueError: odd", "/w/datasets/indexed_dataset.py").splitlines()),
        strict=True,
    )
    found = said("\n".join(line for pair in lines for line in pair))
    assert (found.cause, found.where and found.where.rank) == ("data_error", 1)
    assert found.where
    assert found.where.code == "/w/datasets/indexed_dataset.py:7"


def test_frames_of_rich_and_ipython_are_frames() -> None:
    rich = (
        "╭──── Traceback (most recent call last) ────╮\n"
        "│ /w/datasets/indexed_dataset.py:18 in get  │\n"
        "│ ❱ 18 │   ptr = self.sizes[index]          │\n"
        "╰───────────────────────────────────────────╯\n"
        "IndexError: index 9 is out of bounds\n"
    )
    ipython = (
        "File /w/transformers/tokenization_utils_base.py:16, in Base.apply_chat_template(self, messages)\n"
        "     15 try:\n"
        "---> 16     return rendered + suffix\n"
        "TypeError: can only concatenate str\n"
    )
    first, second = said(rich), said(ipython)
    assert (first.cause, first.where and first.where.code) == ("data_error", "/w/datasets/indexed_dataset.py:18")
    assert (second.cause, second.where and second.where.code) == (
        "tokenizer_or_template",
        "/w/transformers/tokenization_utils_base.py:16",
    )


def test_a_label_with_and_without_a_space_is_one_stream() -> None:
    text = traceback("KeyError: (0, 0)", "/w/datasets/indexed_dataset.py")
    lines = [f"[default0]:{' ' if line.startswith(' ') else ''}{line}" for line in text.splitlines()]
    assert said("\n".join(lines)).cause == "data_error"


def test_of_rules_as_strong_that_match_one_line_the_first_counts() -> None:
    rule = {"strength": "proof", "match": ["alpha beta"]}
    first = Rule.model_validate({"name": "z", "cause": "filesystem", "patterns": ["alpha"], **rule})
    second = Rule.model_validate({"name": "a", "cause": "host_oom", "patterns": ["beta"], **rule})
    for rules in ([first, second], [second, first]):
        assert explain(Table(rules=rules), [log_of_text("alpha beta")]).cause == rules[0].cause


def test_of_several_logs_the_earliest_failure_counts() -> None:
    late = "2026-11-20 12:00:09 " + traceback("KeyError: 'a'")
    early = "2026-11-20 12:00:01 starting\n" + traceback("ZeroDivisionError: division by zero")
    found = said(late, early)
    assert found.where
    assert found.where.log == "log 1"


def test_an_error_that_the_work_survived_is_not_the_root() -> None:
    survived = traceback("ValueError: No available memory for the cache blocks") + "step\n" * 5000
    assert said(survived + traceback("TypeError: a bug")).cause == "python_bug"
    assert said(survived).cause == "cuda_oom", "for nothing better is seen"


def test_only_the_last_attempt_of_a_stage_counts() -> None:
    first, second = "reasonforge: stage grpo, attempt 1\n", "reasonforge: stage grpo, attempt 2\n"
    found = said(first + OOM + "\n" + second + traceback("TypeError: a bug"))
    assert (found.cause, found.cascade, found.where and found.where.line) == ("python_bug", (), 7)
    assert said(first + OOM + "\n" + second + "step 1\n").cause == "unknown"
    assert said(first + OOM + "\n" + "step\n" * 9000 + f"0: {second}step 1\n").cause == "unknown"
    assert said(second + OOM + "\n3: " + second).cause == "cuda_oom", "another rank of the same attempt"
    assert said(first + 'Traceback (most recent call last):\n  File "a.py", line 1\n' + second).cause == "unknown"


def test_numbers_that_matter_are_not_passed_over() -> None:
    line = "iteration {0:8d}/ 90000 | lm loss: {0}.5E+00 | number of nan iterations:   {1} |\n"
    text = "".join(line.format(number, number // 30_000) for number in range(30_003))
    found = said(text)
    assert (found.cause, found.where and found.where.line) == ("nan_or_divergence", 30_001)


def test_facts_speak_like_lines() -> None:
    assert said("step 1", facts=(Facts(state="OUT_OF_MEMORY", exit_code="0:125"),)).cause == "host_oom"
    assert said(facts=(Facts(state="NODE_FAIL", nodes="n1"),)).cause == "node_fail"
    assert said(facts=(Facts(state="CANCELLED by 1000", exit_code="0:0"),)).cause == "user_cancelled"
    assert said(facts=(Facts(state="FAILED", exit_code="1:0"),)).cause == "unknown"
    assert said(facts=(Facts(words=("stage grpo: [Errno 28] No space left on device",)),)).cause == "disk_full_or_quota"
    assert said(OOM, facts=(Facts(state="TIMEOUT"),)).cause == "cuda_oom"


def test_nothing_known_is_unknown() -> None:
    for text in ("", "\n\n", "all is well\nloss 0.3\n", "exit code 1"):
        found = said(text)
        assert (found.cause, found.confidence, found.lines, found.where) == ("unknown", 0.0, (), None)
        assert found.remedy
    assert "unknown" in CAUSES


@pytest.mark.parametrize(
    "disguise",
    [
        lambda line: f"\x1b[31m{line}\x1b[0m\r\n",
        lambda line: f" 10%|#  | 1/10\r 20%|## | 2/10\r{line}\n",
        lambda line: f"\ufeff{line}\r\n",
        lambda line: "x" * 50_000 + "\n" + line + "\n",
        lambda line: line + " " + "y" * 1_000_000,
        lambda line: "z" * 1_000_000 + " " + line,
        lambda line: "\x00\x01\x02 " + line + "\x00",
        lambda line: f"3: {line}",
        lambda line: f"(Worker pid=4, ip=10.0.0.1) {line}",
    ],
)
def test_a_line_is_found_in_any_dress(disguise) -> None:  # type: ignore[no-untyped-def]
    assert said(disguise("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.")).cause == "cuda_oom"


def test_binary_garbage_is_read_to_its_end() -> None:
    garbage = bytes(range(256)) * 5000
    found = explain(table(), [log_of_text(garbage.decode("latin1"))])
    assert found.cause in CAUSES
    raw = b"".join(block.data for block in blocks(io.BytesIO(garbage)))
    assert raw


def test_line_numbers_count_newlines_only() -> None:
    text = "a\rb\rc\n" * 70_000 + "CUDA error: out of memory\n"
    found = said(text)
    assert found.where
    assert found.where.line == 70_001


@pytest.mark.parametrize(
    "unit", ["error ", "a", "Errno 28", "loss: ", '  File "', "[rank3]:", "NCCL WARN ", "(", "nan "]
)
def test_no_line_takes_long(unit: str) -> None:
    """Each pattern has bounded quantifiers; the longest line kept is tried against all of them."""
    line = (unit * 5000)[:4096]
    script = (
        "import resource, sys; from slurm.explain.engine import *; from slurm.explain.table import read_table;"
        "resource.setrlimit(resource.RLIMIT_CPU, (20, 20)); line, last = sys.stdin.read().split('\\n');"
        "text = '\\n'.join([*(line + str(n) for n in range(20)), last]);"
        "found = explain(read_table(), [log_of_text(text)]); print(found.cause, found.where.line)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], input=f"{line}\n{OOM}", capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["cuda_oom", "21"], "what stands below the long lines is still found"


def test_a_large_log_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.log"
    chunk = "".join(
        f"[2026-11-20 12:00:00] iteration {n:8d}/ 500000 | lm loss: {n / 7:.6E} | number of nan iterations:   0 |\n"
        for n in range(10_000, 20_000)
    )
    with open(path, "w") as handle:
        for _ in range(200_000_000 // len(chunk)):
            handle.write(chunk)
        handle.write(OOM + "\n")
    script = (
        "import json, resource, sys; from pathlib import Path; from slurm.explain.engine import explain;"
        "from slurm.explain.runs import log_of_file; from slurm.explain.table import read_table; table = read_table();"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "found = explain(table, [log_of_file(Path(sys.argv[1]))]);"
        "print(json.dumps([found.cause, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before]))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    cause, grown_kib = json.loads(done.stdout)
    os.unlink(path)
    assert cause == "cuda_oom"
    assert grown_kib < 64 * 1024


def test_where_a_line_comes_from() -> None:
    assert rank_of("[default5]:[rank12]: boom") == 12
    assert rank_of("7: boom") == 7
    assert node_of("gpu-n026:118:119 [5] NCCL WARN x") == "gpu-n026"
    assert node_of("srun: error: n12: task 3: Killed") == "n12"
    assert node_of("no node here") is None
    assert split("i.pretrain/0 [default5]:[rank5]: ValueError: x").body == "ValueError: x"
    assert split("(EngineCore_DP0 pid=6) ERROR 09-05 15:42:04 [core.py:1002] TimeoutError: x").body == "TimeoutError: x"
    assert split('  File "a.py", line 3').body.startswith("  File")
    first, second = time_of("2026-11-20T12:00:01.5 x"), time_of("[E1120 12:00:02.25 x.cpp:1] y")
    assert first is not None
    assert second is not None
    assert second - first == pytest.approx(0.75)
    assert time_of("version 1.2.3") is None


def test_a_users_table_is_laid_over_and_checked(tmp_path: Path) -> None:
    good = tmp_path / "good.yaml"
    good.write_text(
        "rules:\n- {name: a, cause: filesystem, strength: proof, patterns: ['frob evicted'], match: [frob evicted]}\n"
    )
    assert explain(read_table([good]), [log_of_text("x: frob evicted")]).cause == "filesystem"
    for text, expected in [
        ("rules:\n- {name: a, cause: filesystem, patterns: ['x.*y'], match: [xy]}\n", "bound"),
        ("rules:\n- {name: a, cause: filesystem, patterns: ['(x{1,9}){1,9}'], match: [xy]}\n", "slow"),
        ("rules:\n- {name: a, cause: filesystem, patterns: ['(x'], match: [xy]}\n", "regular expression"),
        ("rules:\n- {name: a, cause: filesystem, patterns: ['x'], match: [y]}\n", "example"),
        ("rules:\n- {name: a, cause: filesystem, patterns: ['x'], match: [x], clean: [xy]}\n", "must not"),
        ("rules:\n- {name: a, cause: filesystems, patterns: ['x'], match: [x]}\n", "cause"),
    ]:
        bad = tmp_path / "bad.yaml"
        bad.write_text(text)
        with pytest.raises(RequestError) as caught:
            read_table([bad])
        assert "bad.yaml" in str(caught.value)
        assert expected in str(caught.value)
