"""Datasets on the Hugging Face Hub by name, read through `datasets`. `rows` calls it.

A name is `hub:OWNER/NAME`, with `?config=…&split=…&revision=…` behind it where the defaults are not meant.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from reasonforge.errors import RequestError, nearest

PREFIX = "hub:"
DEFAULT_SPLIT = "train"
BATCH_ROWS = 256
"""Rows that are in memory at once."""

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_OPTIONS = ("config", "split", "revision", "streaming")


@dataclass(frozen=True)
class HubName:
    """One split of a dataset on the Hub."""

    name: str
    config: str | None = None
    """Null takes the dataset's default, or its only one."""
    split: str = DEFAULT_SPLIT
    revision: str | None = None
    """A branch, tag or commit; null takes the main branch as it is when the rows are read."""
    streaming: bool = False
    """Whether rows are read over the network as they are asked for, rather than from a copy in the cache of
    `datasets`, which takes the disk space of the split and can be read offline afterwards."""

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit, so that the rows can never be others."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None


def is_hub(source: Path | str) -> bool:
    """Whether a source is a name on the Hub rather than a path."""
    return str(source).startswith(PREFIX)


def parse_hub(source: Path | str) -> HubName:
    """Read a name. Raises RequestError where it is none."""
    name, _, query = str(source).removeprefix(PREFIX).partition("?")
    if not _NAME.fullmatch(name):
        raise RequestError(str(source), f"{name!r} is no name on the Hub", "write hub:OWNER/NAME?split=train")
    options = dict(parse_qsl(query, keep_blank_values=True))
    for option in options:
        if option not in _OPTIONS:
            raise RequestError(str(source), f"unknown option {option!r}", nearest(option, _OPTIONS))
    streaming = options.pop("streaming", "false")
    if streaming not in ("true", "false"):
        raise RequestError(str(source), f"streaming is {streaming!r}", "choose one of: true, false")
    return HubName(name, streaming=streaming == "true", **{key: value for key, value in options.items() if value})


def read_hub(source: Path | str) -> Iterator[dict[str, Any]]:
    """The rows of a split, in order, a batch at a time: from the network, or from the cache where that has them.

    Raises RequestError, one line, where there is no such dataset, no network, or a damaged file.
    """
    hub = parse_hub(source)
    with _plain_errors(source):
        builder = _builder(hub)
        if hub.streaming:
            yield from builder.as_streaming_dataset(_split(hub, builder, source))
            return
        try:
            builder.download_and_prepare()
        except StopIteration:  # which `datasets` lets through
            raise ValueError("`datasets` finds no rows in its first file") from None
        dataset = builder.as_dataset(_split(hub, builder, source)).with_format("arrow")
        for batch in dataset.iter(BATCH_ROWS):
            yield from batch.to_pylist()


def commit_of(source: Path | str) -> str:
    """The commit that a name means now: asked of the Hub, or offline the newest one in the cache."""
    hub = parse_hub(source)
    if hub.pinned:
        return str(hub.revision)
    with _plain_errors(source):
        return str(_builder(hub).hash)


def _builder(hub: HubName) -> Any:
    """What `datasets` reads the dataset with, of the commit that was asked for.

    Where the Hub cannot be reached, `datasets` takes the newest commit of its cache, whatever revision was given
    (5.2: `CachedDatasetModuleFactory`), and warns. A pinned commit is therefore looked for in the cache by its name.
    """
    import datasets
    from datasets.packaged_modules.cache.cache import Cache

    datasets.disable_progress_bars()
    builder = datasets.load_dataset_builder(hub.name, hub.config, revision=hub.revision)
    if hub.revision in (None, "main") or builder.hash == hub.revision or not isinstance(builder, Cache):
        return builder
    found = {path.name for path in Path(builder.cache_dir).parent.iterdir()}
    if hub.revision not in found:
        raise ValueError(f"the Hub was not reached, and the cache has no revision {hub.revision!r} (Offline)")
    dataset = hub.name.rpartition("/")[2]
    config, version = builder.config.name, str(builder.config.version or "0.0.0")
    return Cache(dataset_name=dataset, repo_id=hub.name, config_name=config, version=version, hash=hub.revision)


def _split(hub: HubName, builder: Any, source: Path | str) -> str:
    known = list(builder.info.splits or getattr(builder.config, "data_files", None) or ())
    if known and hub.split not in map(str, known):
        raise RequestError(str(source), f"no split {hub.split!r}", nearest(hub.split, map(str, known)))
    return hub.split


@contextmanager
def _plain_errors(source: Path | str) -> Iterator[None]:
    """What `datasets` and its clients raise, as one line."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except RequestError:
        raise
    except (OSError, ValueError, KeyError, DatasetsError, HfHubHTTPError) as error:
        said = " ".join(str(error).split())
        if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on") and "Offline" in said:
            remedy = "fetch it once where there is a network, with the same HF_HOME, or unset HF_HUB_OFFLINE"
            raise RequestError(str(source), "not in the local cache, and HF_HUB_OFFLINE is set", remedy) from None
        raise RequestError(str(source), f"cannot be read: {said[:300]}") from None
