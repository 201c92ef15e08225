"""Site files: what is shipped loads, one lies over another, and what is wrong is said in one line."""

from pathlib import Path

import pytest

from reasonforge.errors import RequestError
from recipes.recipe import load_recipe
from slurm.site import SHIPPED, Secret, load_site, read_secrets

RECIPE = Path(__file__).parents[2] / "recipes/distill-grpo-qwen2-tiny.yaml"
SMALL = """\
name: here
partitions:
  cpu: {nodes: 2, cpus_per_node: 8}
  gpu: {nodes: 2, gpus_per_node: 4}
cpu_partition: cpu
"""


def write(tmp_path: Path, text: str) -> str:
    (tmp_path / "site.yaml").write_text(text)
    return str(tmp_path / "site.yaml")


@pytest.mark.parametrize("name", sorted(path.stem for path in SHIPPED.glob("*.yaml")))
def test_shipped_sites_load(name: str) -> None:
    assert load_site(name).name == name


def test_one_site_lies_over_a_shipped_one(tmp_path: Path) -> None:
    path = write(tmp_path, "extends: dgx-h100-pyxis\nname: ours\naccount: a\npartitions: {batch: {nodes: 4}}\n")
    site = load_site(path)
    assert (site.name, site.account, site.partitions["batch"].nodes) == ("ours", "a", 4)
    assert site.partitions["batch"].gpus_per_node == 8
    assert site.runtime.type == "pyxis"


def test_one_site_lies_over_a_file(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(SMALL)
    assert load_site(write(tmp_path, "extends: base.yaml\noffline: true\n")).offline


def test_a_stages_name_counts_more_than_its_type(tmp_path: Path) -> None:
    more = "stages:\n  evaluate: {qos: long}\n  evaluate-grpo: {partition: gpu}\n  grpo: {account: b}\n"
    site, recipe = load_site(write(tmp_path, SMALL + more)), load_recipe(RECIPE)
    found = {name: site.placement(name, recipe.stages[name]) for name in ("evaluate-base", "evaluate-grpo", "grpo")}
    assert (found["evaluate-base"].partition, found["evaluate-base"].qos) == ("cpu", "long")
    assert (found["evaluate-grpo"].partition, found["evaluate-grpo"].qos) == ("gpu", "long")
    assert (found["grpo"].account, found["grpo"].qos) == ("b", None)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (SMALL + "acount: x\n", "site.yaml:6: acount: unknown key 'acount'; did you mean 'account'?"),
        (SMALL.replace("cpu_partition: cpu", "cpu_partition: cpus"), "cpu_partition is 'cpus', but partitions has"),
        (SMALL + "stages: {grpo: {partition: x}}\n", "stages.grpo.partition is 'x', but partitions has no such name"),
        (SMALL + "runtime: {type: docker}\n", "site.yaml:6: runtime.type: found 'docker'"),
        (SMALL + "secrets: {A: {file: a, variable: b}}\n", "a secret comes from file or from variable"),
        ("extends: nowhere\nname: x\n", "nowhere.yaml: no such file"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError) as error:
        load_site(write(tmp_path, text))
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_site_that_is_not_there_names_the_shipped_ones() -> None:
    with pytest.raises(RequestError, match=r"--site nowhere: no such file; shipped sites: .*dgx-h100-pyxis"):
        load_site("nowhere")


def test_secrets_come_from_a_private_file_or_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("hf_123\n")
    (tmp_path / "token").chmod(0o600)
    monkeypatch.setenv("OURS", "w 4")
    found = read_secrets({"HF_TOKEN": Secret(file=str(tmp_path / "token")), "WANDB_API_KEY": Secret(variable="OURS")})
    assert found == {"HF_TOKEN": "hf_123", "WANDB_API_KEY": "w 4"}
    (tmp_path / "token").chmod(0o640)
    with pytest.raises(RequestError, match=r"secrets.HF_TOKEN: others may read .*token; chmod 600"):
        read_secrets({"HF_TOKEN": Secret(file=str(tmp_path / "token"))})
    with pytest.raises(RequestError, match=r"secrets.A: the variable NOT_SET is not set; export it where you submit"):
        read_secrets({"A": Secret(variable="NOT_SET")})
    with pytest.raises(RequestError, match=r"secrets.A: .*absent: No such file or directory; put the secret there"):
        read_secrets({"A": Secret(file=str(tmp_path / "absent"))})
