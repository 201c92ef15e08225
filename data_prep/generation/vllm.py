"""Traces from vLLM servers that we run ourselves, one for each replica, on the GPUs of this machine.

The `generate` and `evaluate` stages call it as their engine of type `vllm`.
"""

import hashlib
import os
import secrets
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from data_prep.generation.chat import Service
from data_prep.generation.chat_engine import ChatEngine
from data_prep.generation.engine import own_licence
from data_prep.generation.gpus import find_gpus, split_gpus
from data_prep.generation.sampling import Sampling, sample_seed
from reasonforge.artifacts import RECEIPT, load
from reasonforge.config import Operational, key_config
from reasonforge.errors import RequestError
from reasonforge.files import canonical_json, sha256_text

if TYPE_CHECKING:
    from data_prep.generation.serving import Server

_NOT_EXTRA = {
    "--api-key", "--uds", "--config", "--pipeline-parallel-size", "-pp", "--data-parallel-size", "-dp", "-tp", "-q",
    "--max-model-len", "--quantization", "--reasoning-parser", "--enforce-eager", "--model", "--chat-template",
    "--default-chat-template-kwargs", "--prefill-context-parallel-size", "-pcp", "--device-memory-utilization",
    "--headless", "--grpc", "--root-path", "--ssl-keyfile", "--ssl-certfile", "--nnodes", "-n",
}  # fmt: skip
"""Flags that have an option of their own, or that would break what we rely on; those we always set come to them."""

_WHOLE = 2**28
"""Bytes up to which a file of the model is read whole to tell its content; of a larger one, blocks are."""
_BLOCKS, _BLOCK = 64, 2**20


class VLLMEngine(ChatEngine):
    """`vllm serve` (0.17 or later), as documented in https://docs.vllm.ai/en/latest/cli/serve/.

    Flags, request fields, answers and the end on SIGTERM are those in the source of 0.17.1 and of 0.33.0; it was run
    with 0.32.0 on the CPU, by a build of others than the vLLM project.
    The sampling parameters are ours alone: the model's own generation_config.json is not read for them, only for the
    tokens that end an answer. The text comes with its special tokens, as the model wrote it, but for the one that ends
    it; `extra_body: {skip_special_tokens: true}` leaves them out, unless a reasoning parser wants them. With
    temperature above 0 a sample depends on the batch that it happened to be in: a run that is repeated from nothing
    gives other samples, but what the journal has is kept. A request with a seed is drawn apart from the others;
    `send_seed: false` samples faster.
    """

    type: Literal["vllm"] = "vllm"
    model_path: str | None = None
    """A model directory, or a name on the Hub; null where a stage's input gives the model."""
    served_name: str | None = None
    """The model's name in requests and traces (`--served-model-name`); null takes the last part of its path."""
    chat_template: str | None = None
    """A file with another chat template (`--chat-template`); null takes the model's own."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """What the chat template gets besides the messages (`enable_thinking: true`), sent with each request."""
    reasoning_parser: str | None = None
    """vLLM's parser for the thinking (`--reasoning-parser`: qwen3, deepseek_r1, …); null leaves it in the text, where
    it comes between `<think>` and `</think>` just the same. A parser is for models that write other marks, and for
    templates that open the thinking themselves (Qwen 3.5, DeepSeek-R1): only it then knows thinking that was cut off.
    To a parser an answer without thinking is thinking without an answer."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of weights and activations (`--dtype`); auto takes the model's own, and bfloat16 or float16 for float32."""
    quantization: str | None = None
    """How weights are quantized when loaded (`--quantization`: fp8, …); null does as the model's config says."""
    kv_cache_dtype: Literal["auto", "fp8", "fp8_e4m3", "fp8_e5m2"] = "auto"
    """Type of the key-value cache (`--kv-cache-dtype`); auto takes the model's."""
    max_model_len: Annotated[int, Field(ge=1)] | None = None
    """Tokens of prompt and answer together (`--max-model-len`); null takes all positions of the model. A request that
    may exceed it only with its prompt is refused by 0.17; later versions give it fewer tokens."""
    extra_arguments: list[str] = Field(default_factory=list)
    """Further arguments of the command line, as they are ("--revision", "main")."""
    tensor_parallel: Annotated[int, Field(ge=1), Operational()] = 1
    """GPUs of a replica (`--tensor-parallel-size`)."""
    replicas: Annotated[int | None, Field(ge=1), Operational()] = None
    """Servers on this machine; null starts as many as there are GPUs for, or one where there is no GPU."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1), Operational()] = 0.9
    """Share of each GPU's memory that a server takes (`--gpu-memory-utilization`)."""
    max_num_seqs: Annotated[int, Field(ge=1), Operational()] = 256
    """Sequences that a server samples at once (`--max-num-seqs`); an eighth more are sent, so that one always waits."""
    enforce_eager: Annotated[bool, Operational()] = False
    """Do without CUDA graphs and compilation (`--enforce-eager`): starts faster, samples slower."""
    executable: Annotated[list[str], Field(min_length=1), Operational()] = Field(default=["vllm", "serve"])
    """The program and what comes before the model; without a directory it is looked for beside Python, then on PATH."""
    start_s: Annotated[float, Field(gt=0), Operational()] = 1800.0
    """Seconds until a server must be ready: weights are read and kernels compiled meanwhile."""
    silence_s: Annotated[float, Field(gt=0), Operational()] = 300.0
    """Seconds after which a server that says nothing about its health is ended and started again. A vLLM that
    others stop while it answers can be such a one: it takes no more requests, but does not end (seen in 0.32)."""
    restarts: Annotated[int, Field(ge=0), Operational()] = 3
    """How often a server may end without an answer in between, and how many servers may end under one request."""

    @model_validator(mode="after")
    def _check_arguments(self) -> Self:
        if "chat_template_kwargs" in self.extra_body:
            raise ValueError("extra_body has chat_template_kwargs; write them as the engine's own chat_template_kwargs")
        set_by_us = {word for word in command_line(self, "model", 0, 0, extra=False) if word.startswith("-")}
        for word in self.extra_arguments:
            flag = word.partition("=")[0].replace("_", "-")  # vLLM takes both, and the beginnings of flags
            if flag in _NOT_EXTRA or (
                len(flag) > 2 and flag.startswith("--") and any(own.startswith(flag) for own in set_by_us | _NOT_EXTRA)
            ):
                raise ValueError(f"extra_arguments has {word!r}, which is not for there; set the engine's own option")
        return self

    @property
    def needs(self) -> tuple[str, ...]:
        """The client, and vLLM where it is to come from this environment."""
        return ("openai", "vllm") if self.executable[0] == "vllm" else ("openai",)

    @property
    def external_files(self) -> tuple[Path, ...]:
        """The files that the user names: of the model's directory, and the chat template."""
        named = () if self.chat_template is None else (Path(self.chat_template),)
        if self.model_path is None or not Path(self.model_path).is_dir():
            return named
        return (*sorted(path for path in Path(self.model_path).iterdir() if path.is_file()), *named)

    def check(self, sampling: Sampling, gpus: int = 0) -> None:
        """Whether its replicas fit the GPUs of a node, and the longest answer its context."""
        if self.max_model_len is not None and sampling.max_tokens > self.max_model_len:
            raise ValueError(
                f"sampling.max_tokens, {sampling.max_tokens}, is more than engine.max_model_len, {self.max_model_len}, "
                "which vLLM refuses; lower the one or raise the other"
            )
        if gpus:
            try:
                split_gpus([""] * gpus, self.tensor_parallel, self.replicas)
            except RequestError as error:
                raise ValueError(str(error)) from None

    def teacher(self, model: Path | None = None) -> str:
        """The served name."""
        return self.served_name or Path(self._source(model)).name

    def found_licences(self, model: Path | None = None) -> dict[str, str]:
        """What the model's directory says."""
        return own_licence(self.teacher(model), self.licence, self._source(model))

    def service(self, *, scratch: Path, seed: int, model: Path | None) -> Service:
        """A server for each replica; they start when the first request is asked.

        Raises RequestError where there are too few GPUs, no such model, or no such program.
        """
        source, key = self._source(model), secrets.token_hex(16)
        decides = key_config(self)
        for name in ("model_path", "served_name", "system_prompt", "chat_template", "licence"):
            decides.pop(name)
        template = None if self.chat_template is None else _file_digest(Path(self.chat_template))
        extra = {"chat_template_kwargs": self.chat_template_kwargs} if self.chat_template_kwargs else {}
        return Service(
            name=f"engine vllm, {self.teacher(model)}",
            model=self.teacher(model),
            identity=[model_identity(source), template, decides],
            endpoints=self._servers(source, key, scratch / "servers", seed),
            api_key=key,
            extra_body={"skip_special_tokens": False, **self.extra_body, **extra},
            max_tokens_field="max_tokens",
            send_seed=self.send_seed,
            timeout_s=self.timeout_s,
            max_retries=self.max_retries,
        )

    def _source(self, model: Path | None) -> str:
        source = str(model or self.model_path or "")
        if not source:
            raise RequestError("engine.model_path", "not given, and no input names a model", "set it to a directory")
        return source

    def _servers(self, source: str, key: str, logs: Path, seed: int) -> "list[Server]":
        from data_prep.generation.serving import Launch, Server

        program = _program(self.executable[0])
        places = split_gpus(find_gpus(os.environ), self.tensor_parallel, self.replicas)
        environment = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", **os.environ, "VLLM_API_KEY": key, "VLLM_NO_USAGE_STATS": "1"}
        servers = []
        for number, gpus in enumerate(places):
            visible = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}
            # Without seeds in the requests every start has to draw for itself, or replicas would draw alike.
            own_seed = sample_seed(seed, "server", number) if self.send_seed else secrets.randbits(31)
            launch = Launch(
                name=f"server {number} of {len(places)}",
                command=partial(_started, program, self, source, own_seed),
                environment={**environment, **visible},
                log=logs / f"server-{number}.log",
                api_key=key,
                concurrency=self.max_num_seqs + max(self.max_num_seqs // 8, 1),
                start_s=self.start_s,
                silence_s=self.silence_s,
                restarts=self.restarts,
            )
            servers.append(Server(launch))
        return servers


def command_line(engine: VLLMEngine, source: str, port: int, seed: int, *, extra: bool = True) -> list[str]:
    """The command line of one server: a pure function of these.

    Args:
        source: the model's directory, or its name on the Hub.
        port: of 127.0.0.1.
        seed: of what is drawn without a seed of its own.
        extra: whether the user's further arguments are among them.
    """
    given = {
        "--max-model-len": engine.max_model_len,
        "--quantization": engine.quantization,
        "--reasoning-parser": engine.reasoning_parser,
        "--chat-template": engine.chat_template,
    }
    return [
        *engine.executable, source,
        "--host", "127.0.0.1",
        "--port", str(port),
        "--served-model-name", engine.served_name or Path(source).name,
        "--tensor-parallel-size", str(engine.tensor_parallel),
        "--gpu-memory-utilization", str(engine.gpu_memory_utilization),
        "--max-num-seqs", str(engine.max_num_seqs),
        "--dtype", engine.dtype,
        "--kv-cache-dtype", engine.kv_cache_dtype,
        "--seed", str(seed),
        "--generation-config", "vllm",
        "--disable-uvicorn-access-log",
        *(word for flag, value in given.items() if value is not None for word in (flag, str(value))),
        *(["--enforce-eager"] if engine.enforce_eager else []),
        *(engine.extra_arguments if extra else ()),
    ]  # fmt: skip


def model_identity(source: str) -> str:
    """What tells a model by its content: an artifact's digest; of another directory its files, large ones by 64 blocks
    spread evenly, for training changes weights everywhere; of the Hub's models their name.

    Raises RequestError where a path that looks like a directory's is none.
    """
    directory = Path(source)
    if not directory.is_dir():
        if source.count("/") > 1 or source.startswith((".", "/", "~")):
            raise RequestError(source, "no such model directory")
        return source
    if (directory / RECEIPT).exists():
        return load(directory).digest
    files = sorted(path for path in directory.iterdir() if path.is_file())
    return sha256_text(canonical_json({path.name: _file_digest(path) for path in files}))


def _file_digest(path: Path) -> str:
    if not path.is_file():
        raise RequestError(str(path), "no such file")
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as handle:
        for number in range(_BLOCKS if size > _WHOLE else -(-size // _BLOCK)):
            handle.seek(number * (size - _BLOCK) // (_BLOCKS - 1) if size > _WHOLE else number * _BLOCK)
            digest.update(handle.read(_BLOCK))
    return digest.hexdigest()


def _started(program: str, engine: VLLMEngine, source: str, seed: int, port: int) -> Sequence[str]:
    return [program, *command_line(engine, source, port, seed)[1:]]


def _program(name: str) -> str:
    """The program's path. Raises RequestError where there is none."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise RequestError(
            "engine.executable",
            f"no program {name!r} beside {sys.executable} or on PATH",
            "install vllm into this environment, or name the program's path",
        )
    return found
