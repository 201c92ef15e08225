"""Curation: traces are verified, annotated, filtered, deduplicated, decontaminated and selected, and every dropped row
says why.

The stage `curate` and the commands `reasonforge data …` call it. The files are cut into shards by bytes; what a row
needs alone is done shard by shard, in worker processes or by the tasks of an array, and kept (`shard_work`); what needs
all rows is done in one pass (`gathering`). What comes out depends on neither shards nor workers nor kills.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.curation.gathering import gather
from data_prep.curation.shard_work import Shard, ShardJob, Workbench, work_shard
from data_prep.curation.steps import Steps
from data_prep.generation.sampling import MakeProgress
from data_prep.overlap.decontamination import Benchmark
from data_prep.shards import work_in_processes
from data_prep.sources.lines import count_lines, spans
from data_prep.sources.rows import Source
from reasonforge.disk import plain_disk_errors

SHARD_BYTES = 4 << 20
"""Bytes of a shard, or more where there would be over MOST_SHARDS."""
MOST_SHARDS = 16_384


class Curation:
    """One piece of curation: files and what is done with their rows.

    Args:
        sources: jsonl files, one after the other; rows have `id` and the columns that the steps need. Rows of one
            problem (`problem_id`) that stand next to each other are never divided between shards.
        steps: what is done.
        scratch: keeps the shards that are done; the same sources, steps and benchmarks at every attempt.
        benchmarks: evaluation problems besides those that `steps.decontaminate` names.
    """

    def __init__(
        self, sources: Sequence[Path | Source], steps: Steps, scratch: Path, benchmarks: Sequence[Benchmark] = ()
    ):
        against = steps.decontaminate.against if steps.decontaminate is not None else []
        self._job = ShardJob(steps, scratch, (*benchmarks, *map(_named, against)))
        self._sources = files = [one if isinstance(one, Source) else Source(one, one) for one in sources]
        size = max(SHARD_BYTES, sum(one.path.stat().st_size for one in files if one.path.is_file()) // MOST_SHARDS)
        found = [(one, span) for one in files for span in spans(one.path, size)]
        self._shards = [Shard(index, one, span) for index, (one, span) in enumerate(found)]

    def work(self, *, workers: int, progress: MakeProgress, part: int = 0, parts: int = 1) -> None:
        """Do the shards, or a part of them, that are not done.

        Raises RequestError, with file and line, for a bad row that is refused, and where this machine or an endpoint
        cannot grade; StageError where a worker process was killed.
        """
        with plain_disk_errors(self._job.scratch):
            self._job.scratch.mkdir(parents=True, exist_ok=True)
            self._work(workers, progress, part, parts)

    def _work(self, workers: int, progress: MakeProgress, part: int, parts: int) -> None:
        count = len(self._shards)
        ours = self._shards[part * count // parts : (part + 1) * count // parts]
        todo = [shard for shard in ours if not self._job.marks(shard).exists()]
        if not todo:
            return
        lines = {shard.index: count_lines(shard.path, shard.span) for shard in ours}
        title = "grading" if self._job.steps.grader is not None else "reading"
        with progress(title, sum(lines.values()), "rows") as counter:
            counter.resume(sum(lines.values()) - sum(lines[shard.index] for shard in todo))
            large = sum(shard.span[1] - shard.span[0] for shard in todo) > SHARD_BYTES
            if workers > 1 and len(todo) > 1 and large:
                sizes = [lines[shard.index] for shard in todo]
                work_in_processes(partial(work_shard, self._job), todo, sizes, workers=workers, progress=counter)
                return
            bench = Workbench(self._job, workers)
            try:
                for shard in todo:
                    done = counter.done
                    bench.work(shard, counter)
                    counter.set(done + lines[shard.index])
            finally:
                bench.close()

    def finish(self, out: Path, *, seed: int, progress: MakeProgress) -> dict[str, Any]:
        """Once all shards are done: make one dataset of them, and return counts.

        Writes into `out` `dataset.jsonl`, `dropped.jsonl` (each row with `dropped_by` and `reason`; a duplicate also
        with `duplicate_of`, a near-duplicate with its `similarity` too, a contaminated row with `contamination`, see
        `EvaluationIndex.hits`, where a hit in another column than the prompt has its `column`), `funnel.json`, and
        where bad rows are set aside `bad.jsonl` (file, line, reason and the line's beginning).

        No two rows of the dataset have one id, whatever files they are from. Raises RequestError for an id that comes
        again, where that is refused (in another file it may, where the row is equal and equal rows are dropped), and
        where there are no rows; StageError, naming the step that dropped most, where no row is left.
        """
        with plain_disk_errors(out):
            return gather(self._job, self._sources, self._shards, out, seed=seed, progress=progress)


def _named(benchmark: Benchmark) -> Benchmark:
    return benchmark if benchmark.name is not None else benchmark.model_copy(update={"name": Path(benchmark.path).name})
