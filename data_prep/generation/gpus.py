"""The GPUs of this machine, and which replica of a model gets which. The engine `vllm` calls it."""

from collections.abc import Mapping, Sequence

from reasonforge.errors import RequestError
from reasonforge.processes import output


def split_gpus(gpus: Sequence[str], each: int, replicas: int | None) -> list[Sequence[str]]:
    """The GPUs of every replica, `each` of them for each; without GPUs, replicas without any.

    Args:
        gpus: names of this machine's GPUs, as CUDA_VISIBLE_DEVICES takes them.
        each: GPUs of one replica (its tensor parallelism).
        replicas: how many; None for as many as there are GPUs for.

    Raises RequestError where there are not enough.
    """
    count = replicas or max(len(gpus) // each, 1)
    if count * each > len(gpus) and (gpus or each > 1):
        raise RequestError(
            "engine.replicas" if replicas else "engine.tensor_parallel",
            f"{count} x {each} GPUs are needed, but there are {len(gpus)}",
            "lower replicas or tensor_parallel, or ask for more with resources.gpus_per_node",
        )
    return [gpus[number * each : (number + 1) * each] for number in range(count)]


def find_gpus(environment: Mapping[str, str]) -> list[str]:
    """The GPUs that this process may use: CUDA_VISIBLE_DEVICES, else all that nvidia-smi lists.

    They are numbers wherever nvidia-smi knows them, in its order (CUDA_DEVICE_ORDER=PCI_BUS_ID): vLLM 0.17 takes no
    UUIDs.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    numbers: dict[str, str] = {}
    if visible is None or "GPU-" in visible:
        listed = output(["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]) or ""
        for line in listed.splitlines():
            number, _, uuid = line.partition(",")
            numbers[uuid.strip()] = number.strip()
    if visible is None:
        return list(numbers.values())
    names = [name for name in map(str.strip, visible.split(",")) if name not in ("", "-1", "NoDevFiles")]
    return [
        next((number for uuid, number in numbers.items() if name.startswith("GPU-") and uuid.startswith(name)), name)
        for name in names
    ]
