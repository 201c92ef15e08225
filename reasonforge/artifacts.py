"""Artifacts and receipts: a stage's output is a directory that exists only whole, with a record of how it was made.

A receipt is written last, after everything is on the disk, and the directory appears by rename:
no receipt, no artifact. The receipt lists every file's SHA-256, and carries a checksum over itself.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from reasonforge.config import Strict
from reasonforge.errors import RequestError
from reasonforge.files import canonical_json, fsync_path, read_json, sha256_file, sha256_text, write_json

ArtifactKind = Literal[
    "problems", "traces", "dataset", "tokens", "hf_checkpoint", "megatron_checkpoint", "scores", "report"
]

RECEIPT = "receipt.json"


class FileRecord(Strict):
    """One file of an artifact: its size in bytes and the SHA-256 of its content."""

    bytes: int
    sha256: str


class InputRecord(Strict):
    """An artifact that went in, as it was then."""

    stage: str
    kind: ArtifactKind
    digest: str


class Cost(Strict):
    """What the attempt that finished a stage took on its machine."""

    started_at: str
    """UTC, ISO 8601."""
    wall_s: float
    """Seconds from start to publication."""
    cpu_s: float
    """CPU seconds, user and system, of the stage and its finished child processes."""
    peak_rss_bytes: int
    """Largest resident set of the stage's own process."""
    attempt: int
    """1 for a stage that was never interrupted."""


class Receipt(Strict):
    """How an artifact came to be. `digest` names its content: equal files, equal digest."""

    format: Literal[1] = 1
    stage: str
    stage_type: str
    kind: ArtifactKind
    key: str
    config: dict[str, Any]
    inputs: dict[str, InputRecord]
    files: dict[str, FileRecord]
    digest: str
    counts: dict[str, Any]
    """What the stage counted, flat: rows in and out, tokens, steps."""
    environment: dict[str, Any]
    """Versions of Python and the packages that did the work, the code's revision, the image."""
    cost: Cost
    lineage: dict[str, dict[str, Any]]
    """Every ancestor stage by name: its kind, digest and cost. Flat, so that an artifact tells its history alone."""


@dataclass(frozen=True)
class Artifact:
    """A published directory and its receipt."""

    path: Path
    receipt: Receipt

    @property
    def digest(self) -> str:
        """The name of the content."""
        return self.receipt.digest


def stage_key(stage_type: str, version: int, config: Mapping[str, Any], inputs: Mapping[str, InputRecord]) -> str:
    """The identity of a piece of work: equal keys promise equal work, so a published one is not done again.

    Args:
        config: the resolved configuration without its operational fields (`reasonforge.config.key_config`).
        inputs: the artifacts that go in; their content and order count, not the names of the stages that made them.
    """
    identity = {
        "type": stage_type,
        "version": version,
        "config": config,
        "inputs": [[name, record.digest] for name, record in inputs.items()],
    }
    return sha256_text(canonical_json(identity))


def hash_files(directory: Path) -> dict[str, FileRecord]:
    """Size and SHA-256 of every file below a directory, the receipt itself excepted, sorted by path."""
    paths = [path for path in sorted(directory.rglob("*")) if path.is_file() and path != directory / RECEIPT]

    def record(path: Path) -> FileRecord:
        return FileRecord(bytes=path.stat().st_size, sha256=sha256_file(path))

    with ThreadPoolExecutor(4) as pool:
        return {
            path.relative_to(directory).as_posix(): found
            for path, found in zip(paths, pool.map(record, paths), strict=True)
        }


def content_digest(files: Mapping[str, FileRecord]) -> str:
    """The name of a set of files: the SHA-256 over their paths and hashes."""
    return sha256_text(canonical_json({name: found.sha256 for name, found in files.items()}))


def seal(directory: Path, receipt: Receipt) -> Artifact:
    """Flush a finished directory to the disk, then write its receipt: from here on it is an artifact."""
    for path in directory.rglob("*"):
        fsync_path(path)
    body = receipt.model_dump(mode="json")
    write_json(directory / RECEIPT, {**body, "checksum": _checksum(body)})
    return Artifact(directory, receipt)


def load(directory: Path) -> Artifact:
    """Open an artifact: its receipt must be intact and its files there, with their sizes (`verify` reads them too).

    Raises RequestError where there is none, where the receipt was altered, or where a file is missing or resized.
    """
    path = directory / RECEIPT
    if not path.exists():
        raise RequestError(str(directory), "no receipt.json, so no finished artifact", "run the stage that makes it")
    body = read_json(path)
    checksum = body.pop("checksum", None) if isinstance(body, dict) else None
    try:
        intact = checksum is not None and checksum == _checksum(body)
    except ValueError:  # a NaN, which no receipt has
        intact = False
    if not intact:
        raise RequestError(
            str(path),
            "altered after it was written: its checksum does not fit its content",
            "restore it, or make the artifact again with --force STAGE",
        )
    try:
        receipt = Receipt.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        raise RequestError(
            str(path),
            f"not a receipt of this version: {'.'.join(map(str, first['loc']))}: {first['msg']}",
            "make the artifact again with --force STAGE",
        ) from None
    for name, record in receipt.files.items():
        file = directory / name
        if not file.is_file():
            raise RequestError(str(file), "missing, though the receipt lists it", _REMAKE)
        if file.stat().st_size != record.bytes:
            raise RequestError(str(file), f"{file.stat().st_size} bytes, but the receipt says {record.bytes}", _REMAKE)
    return Artifact(directory, receipt)


def verify(directory: Path) -> Artifact:
    """Open an artifact and read every byte of it against its receipt. Raises RequestError on any difference."""
    artifact = load(directory)
    found = hash_files(directory)
    for name, record in artifact.receipt.files.items():
        if found[name].sha256 != record.sha256:
            raise RequestError(str(directory / name), "its content is not what the receipt's SHA-256 says", _REMAKE)
    if extra := sorted(set(found) - set(artifact.receipt.files)):
        raise RequestError(str(directory / extra[0]), "not listed in the receipt", "move it out of the artifact")
    return artifact


_REMAKE = "restore it, or make the artifact again with --force STAGE"


def _checksum(body: Mapping[str, Any]) -> str:
    return sha256_text(canonical_json(body))
