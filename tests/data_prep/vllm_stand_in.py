"""Takes vLLM's command line and serves the model with `transformers serve`, on the CPU: a real server of real chat
completions where there is no vLLM. Like vLLM it refuses arguments that it does not know, and wants the API key."""

import argparse
import os
import sys
from pathlib import Path

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
serve = [str(Path(sys.executable).with_name("transformers")), "serve", options.model.name, "--device", "cpu"]
serve += ["--host", options.host, "--port", options.port, "--default-seed", options.seed]
assert options.served_model_name == options.model.name
cache = Path(".hub")  # /v1/models looks there, and fails where it is not
cache.mkdir(exist_ok=True)
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache.absolute()), "OMP_NUM_THREADS": "1"}
os.execv(serve[0], serve)  # noqa: S606 - the same process, as vLLM's
