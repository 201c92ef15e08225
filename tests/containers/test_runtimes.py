import csv
import re
import shlex
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from containers.runtimes import (
    ApptainerRuntime,
    EnrootRuntime,
    Mount,
    NoRuntime,
    PyxisRuntime,
    Runtime,
    VenvRuntime,
    Wrapped,
)
from containers.runtimes.base import started_in
from reasonforge.config import Strict, load
from reasonforge.errors import RequestError

COMMAND = ["python3", "-m", "recipes.run_stage", "/runs/a b", "distill"]
MOUNTS = ("/runs/a b", "/data:/mnt/data:ro")
ENVIRONMENT = {"HF_HOME": "/cache, or so", "QUOTE": "it's $(date)"}
AWKWARD = [
    "a b",
    "",
    "it's",
    '"',
    "$(touch x)",
    "`x`",
    "\\",
    "*",
    "~",
    "-n",
    "!",
    "überβ漢",
    "a\nb",
    ";",
    "#",
    "a=b,c:d",
]

text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    AWKWARD
)
line = text.filter(lambda value: not set(value) & set("\n\r"))
path = line.map(lambda value: "/" + value.replace(":", ""))
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def spoken(wrapped: Wrapped) -> list[str]:
    """What a shell makes of the line that `plan` prints and a script holds."""
    quoted = shlex.join(["printf", r"%s\0", *wrapped.srun_arguments, *wrapped.command])
    out = subprocess.run(["/bin/bash", "-c", quoted], capture_output=True, check=True).stdout.decode()
    return out.split("\0")[:-1]


def refused(runtime: Any, **changed: Any) -> str:
    given = {"command": COMMAND, "image": "/image.sqsh", "mounts": (), "environment": {}, "workdir": "/", **changed}
    with pytest.raises(RequestError) as error:
        runtime.wrap(**given)
    assert "\n" not in str(error.value)
    return str(error.value)


# Golden argument vectors


def test_pyxis() -> None:
    mounts = ("/runs/a", "/data:/mnt/data:ro", "/runs/a:/runs/a:rw")
    done = PyxisRuntime().wrap(COMMAND, "/image.sqsh", mounts, ENVIRONMENT, "/runs/a", ["HF_TOKEN"])
    assert done.srun_arguments == (
        "--container-image=/image.sqsh",
        "--container-mounts=/runs/a:/runs/a,/data:/mnt/data:ro",
        "--container-workdir=/runs/a",
        "--no-container-mount-home",
        "--no-container-entrypoint",
        "--container-env=HF_HOME,HF_TOKEN,QUOTE",
    )
    assert done.command == tuple(COMMAND)
    assert done.environment == ENVIRONMENT
    least = PyxisRuntime(mount_home=True, entrypoint=True).wrap(
        COMMAND, "docker://nvcr.io#nvidia/nemo:25.09", (), {}, "/"
    )
    assert least.srun_arguments == (
        "--container-image=docker://nvcr.io#nvidia/nemo:25.09",
        "--container-workdir=/",
        "--container-mount-home",
        "--container-entrypoint",
    )


def test_enroot() -> None:
    runtime = EnrootRuntime(inherit=("SLURM_PROCID", "QUOTE"))
    done = runtime.wrap(COMMAND, "/image.sqsh", MOUNTS, ENVIRONMENT, "/runs/a b", ["HF_TOKEN"])
    assert done.command == (
        "enroot", "start",
        "--mount", r"/runs/a\040b:/runs/a\040b:none:x-create=auto,rbind",
        "--mount", "/data:/mnt/data:none:x-create=auto,rbind,ro",
        "--env", "SLURM_PROCID",
        "--env", "HF_TOKEN",
        "--env", "NVIDIA_VISIBLE_DEVICES=all",
        "--env", "NVIDIA_DRIVER_CAPABILITIES=compute,utility",
        "--env", "HF_HOME=/cache, or so",
        "--env", "QUOTE=it's $(date)",
        "--", "/image.sqsh",
        "sh", "-c", 'cd -- "$0" && exec "$@"', "/runs/a b", *COMMAND,
    )  # fmt: skip
    assert (done.srun_arguments, done.environment) == ((), {})
    least = EnrootRuntime(inherit=(), gpus=False, writable=True).wrap(["true"], "name", (), {}, "/")
    assert least.command[:6] == ("enroot", "start", "--rw", "--", "name", "sh")


def test_apptainer() -> None:
    done = ApptainerRuntime().wrap(COMMAND, "/image.sif", (*MOUNTS, '/a,"b'), ENVIRONMENT, "/runs/a b")
    assert done.command == (
        "apptainer", "exec", "--no-eval", "--nv", "--no-home",
        "--mount", "type=bind,src=/runs/a b,dst=/runs/a b",
        "--mount", "type=bind,src=/data,dst=/mnt/data,ro",
        "--mount", 'type=bind,"src=/a,""b","dst=/a,""b"',
        "--pwd", "/runs/a b", "/image.sif", *COMMAND,
    )  # fmt: skip
    assert done.environment == {"APPTAINERENV_HF_HOME": "/cache, or so", "APPTAINERENV_QUOTE": "it's $(date)"}
    least = ApptainerRuntime(nvidia=False, mount_home=True).wrap(["true"], "docker://debian:12", (), {}, "/")
    assert least.command == ("apptainer", "exec", "--no-eval", "--pwd", "/", "docker://debian:12", "true")


def test_none_is_as_it_is() -> None:
    done = NoRuntime().wrap(COMMAND, None, MOUNTS, {"A": "two\nlines"}, "/runs/a b")
    assert done == Wrapped(tuple(COMMAND), (), {"A": "two\nlines"})


# Values


@quick
@given(st.lists(text, min_size=1, max_size=4), line, path, line)
def test_every_value_survives_the_shell(command: list[str], value: str, place: str, image: str) -> None:
    environment = {"NAME": f"x{value}"}
    for runtime in (PyxisRuntime(), EnrootRuntime(), ApptainerRuntime()):
        done = runtime.wrap(command, f"/{image}", (), environment, place)
        heard = spoken(done)
        assert heard == [*done.srun_arguments, *done.command]
        assert heard[-len(command) :] == command
        assert any(part.endswith(f"/{image}") for part in heard)
        assert any(part.endswith(place) for part in heard)
        assert f"NAME=x{value}" in heard or f"x{value}" in done.environment.values()


@quick
@given(path, path)
def test_mounts_say_the_same_paths(source: str, target: str) -> None:
    """Read back as each program reads its option; a path that a program cannot say is refused."""
    mount = [f"{source}:{target}:ro"]
    [argument] = [part for part in ApptainerRuntime().wrap([], "i", mount, {}, "/").command if part.startswith("type=")]
    assert next(csv.reader([argument])) == ["type=bind", f"src={source}", f"dst={target}", "ro"]
    fields = EnrootRuntime().wrap([], "i", mount, {}, "/").command[3].split(":")
    assert not any(set(field) & set(" \t") for field in fields)
    decoded = [re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), field) for field in fields]
    assert decoded == [source, target, "none", "x-create=auto,rbind,ro"]
    if set(source + target) & set(',"$`\\ \t'):
        assert "pyxis cannot mount" in refused(PyxisRuntime(), mounts=mount)
        return
    option = PyxisRuntime().wrap([], "i", mount, {}, "/").srun_arguments[1]
    [said] = option.removeprefix("--container-mounts=").split(",")
    assert said.split(":") == [source, target, "ro"]
    in_its_script = subprocess.run(
        ["/bin/bash", "-c", f'printf %s "{source} {target}"'], capture_output=True, check=True
    )
    assert in_its_script.stdout.decode() == f"{source} {target}"


@quick
@given(st.lists(text, max_size=4), line.filter(lambda name: name not in ("", ".", "..")))
def test_a_command_starts_in_its_directory(tmp_path: Path, arguments: list[str], name: str) -> None:
    place = tmp_path / name.replace("/", "")
    place.mkdir(exist_ok=True)
    script = 'printf "%s\\0" "$PWD" "$@"'
    out = subprocess.run(
        started_in(str(place), ["sh", "-c", script, "sh", *arguments]), capture_output=True, check=True
    )
    assert out.stdout.decode().split("\0")[:-1] == [str(place.resolve()), *arguments]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("venv $(x) 'q'") / "e"
    venv.create(place, with_pip=False, symlinks=True)
    return place


def test_a_venv_is_active(environment: Path) -> None:
    shown = "import os, shutil, sys; print(sys.prefix, shutil.which('python'), os.environ['VIRTUAL_ENV'], sep='\\n')"
    done = VenvRuntime(path=str(environment)).wrap([sys.executable, "-c", shown, *AWKWARD], None, (), {"A": "b"}, "/")
    out = subprocess.run(done.command, capture_output=True, text=True, check=True, env={"PATH": "/usr/bin:/bin"}).stdout
    assert out.splitlines() == [str(environment), str(environment / "bin" / "python"), str(environment)]
    assert done.environment == {"A": "b"}
    assert done.command[-len(AWKWARD) :] == tuple(AWKWARD)
    assert VenvRuntime(path=str(environment)).wrap(["vllm"], None, (), {}, "/").command[-1] == "vllm"


# What is refused


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"image": None}, "needs an image"),
        ({"image": "--rw"}, "taken for an option"),
        ({"image": "a\nb"}, "line break"),
        ({"workdir": "here"}, "is not absolute"),
        ({"environment": {"A": "two\nlines"}}, "line break"),
        ({"environment": {"A B": "x"}}, "is no name"),
        ({"inherit": ["A,B"]}, "is no name"),
        ({"mounts": ["/a:/b:/c"]}, "not ro or rw"),
        ({"mounts": ["/a:/b:ro:x"]}, "not ro or rw"),
        ({"mounts": ["data"]}, "is not absolute"),
        ({"mounts": ["/a:b"]}, "is not absolute"),
        ({"mounts": ["/a\nb"]}, "line break"),
        ({"mounts": ["/a:/x", "/b:/x"]}, "'/b' and '/a'"),
    ],
)
def test_what_no_container_takes(changed: dict[str, Any], said: str) -> None:
    for runtime in (PyxisRuntime(), EnrootRuntime(), ApptainerRuntime()):
        assert said in refused(runtime, **changed)


def test_what_one_runtime_does_not_take(tmp_path: Path) -> None:
    assert "of a registry" in refused(PyxisRuntime(), image="images/x.sqsh")
    assert "enroot import" in refused(EnrootRuntime(), image="docker://debian")
    assert "quotes" in refused(EnrootRuntime(), environment={"A": "'x' "})
    assert "its own" in refused(EnrootRuntime(), environment={"ENROOT_DATA_PATH": "/x"})
    assert "HOME" in refused(ApptainerRuntime(), environment={"HOME": "/x"})
    assert "uses none" in refused(NoRuntime())
    assert "uses none" in refused(VenvRuntime(path=str(tmp_path)))
    assert "no virtual environment" in refused(VenvRuntime(path=str(tmp_path)), image=None)
    assert "not absolute" in refused(VenvRuntime(path="venv"), image=None)


class Holder(Strict):
    runtime: Runtime = NoRuntime()


def test_a_site_names_a_runtime(tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("runtime: {type: enroot, inherit: [A]}\n")
    assert load(Holder, site).runtime == EnrootRuntime(inherit=("A",))
    site.write_text("runtime: {type: docker}\n")
    with pytest.raises(RequestError, match="choose one of: apptainer, enroot, none, pyxis, venv"):
        load(Holder, site)


def test_a_mount_is_read() -> None:
    assert Mount.parse("/a") == Mount("/a", "/a")
    assert Mount.parse("/a:/b:rw") == Mount("/a", "/b")
