"""What else a user meets on a real cluster: bad nodes, too little memory, early refusals, the whole recipe."""

import json
import os
from pathlib import Path

import pytest
from cluster_desk import CHAIN, LONG, SITE, ClusterDesk, go_on, start_long, weights
from desk import Desk

from slurm.site import load_site

pytestmark = pytest.mark.xdist_group("slurm")

RECIPE = Path(__file__).parents[2] / "recipes/distill-grpo-qwen2-tiny.yaml"
SHORT = {
    "problems.source.train": 400, "problems.source.eval": 20, "base.source.training.steps": 20,
    "distill.engine.steps": 30, "evaluate-base.limit": 5, "evaluate-distilled.limit": 5, "evaluate-grpo.limit": 5,
    "grpo.engine.steps": 3, "evaluate-base.sampling.samples": 2, "evaluate-distilled.sampling.samples": 2,
    "evaluate-grpo.sampling.samples": 2, "evaluate-base.sampling.max_tokens": 40,
    "evaluate-distilled.sampling.max_tokens": 40, "evaluate-grpo.sampling.max_tokens": 40,
}  # fmt: skip


def test_a_node_that_failed_twice_is_left_out(place: ClusterDesk, long_model: str) -> None:
    """The only free node fails, comes back, fails again; when the job is given it once more, it moves on by itself."""
    others = place.cluster.submit("--nodes=3", "--exclusive", script="sleep 600")
    place.cluster.wait_state(others, "RUNNING")
    job, process = start_long(place)
    node = place.cluster.run(["squeue", "--noheader", f"--jobs={job}", "--format=%N"]).stdout.strip()
    for number in (1, 2):
        if number == 2:
            place.cluster.wait_for(lambda: len(places(place)) == 2, "second attempt", 60)
            process = place.halted("long", "base")
        place.cluster.down_node(node, "a test")
        go_on(process)
        place.cluster.wait_for(lambda: place.cluster.state(job) == "PENDING", "requeue", 60)
        place.cluster.resume_node(node)
    place.cluster.wait_for(lambda: place.attempts("long", "base").count(("node_fail", True)) >= 3, "third attempt", 120)
    place.cluster.run(["scancel", str(others)])
    place.wait("long")
    ran_on = places(place)
    assert ran_on[:2] == [[node], [node]]
    assert ran_on[-1] != [node]
    assert weights(place) == long_model


def places(place: ClusterDesk) -> list[list[str]]:
    """The nodes of each attempt of the long training."""
    events = [event for event in place.events("long") if event["event"] == "attempt_started"]
    return [event["nodes"] for event in events if event["job"] == "base"]


def test_too_little_memory_stops_the_run_and_says_so(place: ClusterDesk) -> None:
    after = "  again:\n    type: tokenize\n    inputs: {dataset: curate, model: base}\n    max_tokens: 64\n"
    chain = CHAIN.partition("stages:\n")[2].replace("train: 1000", "train: 60")
    base = (
        LONG.partition("  base:\n")[2]
        .replace("steps: 1200", "steps: 100000")
        .replace("hours: 0.1", "hours: 0.1, memory_gb: 0.2")
    )
    place.write("oom.yaml", f"name: oom\nseed: 1\nstages:\n{chain}  base:\n{base}{after}")
    place.submit("oom.yaml")
    entries = place.wait("oom", exit_code=1)
    assert entries["base"]["state"] == "failed"
    assert "host_oom" in entries["base"]["error"]
    assert entries["again"]["error"] == "needs base, which failed"
    assert entries["curate"]["state"] == "done"
    assert place.attempts("oom", "base") == [("host_oom", False)]
    told = json.loads(place.good("explain", "oom", "--json"))
    assert [(item["stage"], item["state"], item["cause"]) for item in told] == [("base", "failed", "host_oom")]
    assert any("memory" in line for line in told[0]["lines"])


def test_values_and_secrets_reach_the_stage_and_nothing_else(place: ClusterDesk) -> None:
    value = """a b "c" 'd' $(touch pwned) `id` \\ ü; & | * #"""
    token = place.write("token", "s3cr3t-of-ours\n")
    token.chmod(0o600)
    site = (
        SITE
        + f"environment: {{OURS: {json.dumps(value)}}}\nsecrets: {{HF_TOKEN: {{file: {json.dumps(str(token))}}}}}\n"
    )
    _, process = start_long(place, site=site)
    found = dict(entry.partition("=")[::2] for entry in Path(f"/proc/{process}/environ").read_text().split("\0"))
    go_on(process)
    assert found["OURS"] == value
    assert found["HF_TOKEN"] == "s3cr3t-of-ours"
    place.wait("long")
    written = [path for path in place.run("long").rglob("*") if path.is_file()]
    assert not [path for path in written if b"s3cr3t-of-ours" in path.read_bytes()]
    assert not list(place.root.rglob("pwned"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("name: tests", "name: tests\naccount: nobodys"), "account nobodys: not one of yours (root); "),
        (("name: tests", "name: tests\nqos: gold"), "qos gold: not one of yours (root); choose one of: debug, normal"),
        (("  low:", "  lost:"), "stage problems: sbatch --test-only: "),
        (("cpus_per_node: 64", "cpus_per_node: 1"), "resources.cpus_per_task: is 2, but partition batch has 1"),
        (("save_s: 90", "save_s: 90\nsecrets: {A: {variable: NOT_SET}}"), "secrets.A: the variable NOT_SET is not set"),
        (("save_s: 90", "save_s: 90\nimage: /images/x.sqsh\nruntime: {type: pyxis}"), "no such file; build it, or"),
    ],
    ids=["account", "qos", "partition", "cpus", "secret", "image"],
)  # fmt: skip
def test_what_is_wrong_is_said_before_anything_is_queued(
    change: tuple[str, str], told: str, place: ClusterDesk
) -> None:
    text = SITE.replace(*change)
    place.write("site.yaml", text.replace("cpu_partition: batch", "cpu_partition: lost") if "lost" in text else text)
    runs = place.root.parent / "refused"  # pyxis takes no path with a space
    done = place("submit", "chain.yaml", "--site", "site.yaml", "--runs-dir", str(runs))
    assert done.returncode == 2, done.stdout + done.stderr
    assert told in done.stderr
    assert all(line.startswith("error: ") for line in done.stderr.splitlines())
    assert place.cluster.run(["squeue", "--noheader"]).stdout == ""
    assert not (runs / "chain/slurm").exists()


def test_a_probed_site_is_one_that_runs(place: ClusterDesk) -> None:
    place.good("site", "probe", "--into", "probed.yaml")
    site = load_site(str(place.root / "probed.yaml"))
    assert (site.account, site.max_array, site.cpu_partition) == ("research", 1001, "batch")
    assert (site.partitions["batch"].nodes, site.partitions["batch"].gpus_per_node) == (4, 8)
    assert site.partitions["batch"].gpu_type == "h100"
    assert site.partitions["short"].max_hours == pytest.approx(2 / 60, abs=1e-3)
    assert "preempt" in (place.root / "probed.yaml").read_text()
    place.good("submit", "chain.yaml", "--site", "probed.yaml")
    place.wait("chain")
    assert "already there" in place.refused("site", "probe", "--into", "probed.yaml")


def test_status_says_when_slurm_does_not_answer(place: ClusterDesk) -> None:
    place.submit("chain.yaml")
    place.wait("chain")
    done = place("status", "chain", SLURM_CONF=str(place.root / "absent.conf"))
    assert done.returncode == 0
    assert "Slurm does not answer" in done.stderr
    assert "done" in done.stdout


def test_the_tiny_recipe_from_submit_to_report(place: ClusterDesk, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Shortened; what it makes is what one machine makes, and the report tells what it took of the cluster."""
    settings = [word for key, value in SHORT.items() for word in ("--set", f"stages.{key}={value}")]
    local = Desk(tmp_path_factory.mktemp("local"))
    local.good("run", str(RECIPE), "--name", "tiny", *settings)
    place.submit(str(RECIPE), "--name", "tiny", *settings)
    place.wait("tiny")
    ours, theirs = place.digests("tiny"), local.digests("tiny")
    same = {name for name in theirs if ours[name] == theirs[name]}
    assert set(theirs) - same <= {"base", "distill", "grpo", "report"}  # whose metrics have times
    for name in ("base", "distill", "grpo"):
        models = [desk.run("tiny") / f"stages/{name}/model.safetensors" for desk in (place, local)]
        assert models[0].read_bytes() == models[1].read_bytes(), name
    report = json.loads((place.run("tiny") / "report/report.json").read_text())
    assert {row["stage"] for row in report["cluster"]} == set(theirs)
    assert "On the cluster" in (place.run("tiny") / "report/index.html").read_text()
    rows = json.loads(place.good("account", "tiny", "--json"))
    assert all(row["attempts"] == 1 for row in rows)
    assert os.path.getsize(place.run("tiny") / "report/report.md")
