"""Takes vLLM's command line and serves the model with `transformers serve`, on the CPU: a real server of real chat
completions where there is no vLLM. Like vLLM it refuses arguments that it does not know, wants the API key, takes
`skip_special_tokens`, and when it is told to stop it calls what there is of an answer an answer. Where STAND_IN_ASKED
names a directory, it answers only once STAND_IN_SERVERS of its kind have been asked: so each gets some of the work."""

import argparse
import asyncio
import importlib
import os
import sys
from pathlib import Path
from typing import Any

parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument("serve", choices=["serve"])
parser.add_argument("model", type=Path)
for flag in ("--host", "--port", "--served-model-name", "--dtype", "--seed", "--max-num-seqs"):
    parser.add_argument(flag, required=True)
parser.add_argument("--tensor-parallel-size", choices=["1"], required=True)
parser.add_argument("--generation-config", choices=["vllm"], required=True)
parser.add_argument("--kv-cache-dtype", choices=["auto"], required=True)
parser.add_argument("--gpu-memory-utilization", type=float, required=True)
parser.add_argument("--disable-uvicorn-access-log", action="store_true", required=True)
parser.add_argument("--enforce-eager", action="store_true")
parser.add_argument("--max-model-len", type=int)
options = parser.parse_args()
if len(os.environ["VLLM_API_KEY"]) < 16:
    sys.exit("no API key")
os.chdir(options.model.parent)
serve = ["transformers", "serve", options.model.name, "--device", "cpu"]
serve += ["--host", options.host, "--port", options.port, "--default-seed", options.seed]
assert options.served_model_name == options.model.name
cache = Path(".hub")  # /v1/models looks there, and fails where it is not
cache.mkdir(exist_ok=True)
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache.absolute()), "OMP_NUM_THREADS": "1"}

uvicorn: Any = importlib.import_module("uvicorn")  # only now, with this environment
handler: Any = importlib.import_module("transformers.cli.serving.chat_completion").ChatCompletionHandler
told_to_stop = []
handle_exit, handle_request, build = uvicorn.Server.handle_exit, handler.handle_request, handler._build_completion


def note_exit(self: Any, number: int, frame: Any) -> None:
    told_to_stop.append(number)
    handle_exit(self, number, frame)


async def wait_for_the_others(asked: Path, servers: int) -> None:
    asked.mkdir(exist_ok=True)
    (asked / options.port).touch()
    while len(list(asked.iterdir())) < servers:
        await asyncio.sleep(0.02)


async def take_more(self: Any, body: dict[str, Any], *arguments: Any) -> Any:
    assert body.pop("skip_special_tokens") is False
    if "STAND_IN_ASKED" in os.environ:
        await wait_for_the_others(Path(os.environ["STAND_IN_ASKED"]), int(os.environ["STAND_IN_SERVERS"]))
    return await handle_request(self, body, *arguments)


def build_what_there_is(self: Any, *arguments: Any, **named: Any) -> Any:
    made: Any = build(self, *arguments, **named)
    if told_to_stop:
        choice = made["choices"][0]
        choice["finish_reason"] = "abort"
        choice["message"]["content"] = choice["message"]["content"][:5]
    return made


uvicorn.Server.handle_exit = note_exit
handler.handle_request, handler._build_completion = take_more, build_what_there_is
sys.argv = serve
importlib.import_module("transformers.cli.transformers").main()
