"""A table of memory: what each component takes of one GPU, and what is left. Made by `memory` and `serving`."""

from dataclasses import dataclass

GIB = 2**30

UNCERTAINTY = 0.2
"""How much more than the estimate a run may take: the published peaks in `benchmarks.memory` go up to 18 % beyond."""


@dataclass(frozen=True)
class Row:
    """A component and the bytes that it takes of one GPU."""

    component: str
    bytes: int
    fixed: bool = False
    """Whether torch's allocator does not count it: the CUDA context, NCCL, fragmentation."""


@dataclass(frozen=True)
class MemoryTable:
    """What each component takes of one GPU."""

    rows: tuple[Row, ...]
    capacity: int
    """Bytes of the GPU's memory."""
    where: str
    """Which GPU it is about, where they differ: `stage 1 of 4`."""

    @property
    def total(self) -> int:
        """Bytes of all components."""
        return sum(row.bytes for row in self.rows)

    @property
    def allocated(self) -> int:
        """Bytes that torch.cuda.max_memory_allocated would show."""
        return sum(row.bytes for row in self.rows if not row.fixed)

    @property
    def headroom(self) -> int:
        """Bytes that are left; negative where it does not fit."""
        return self.capacity - self.total

    @property
    def fits(self) -> bool:
        """Whether all components fit."""
        return self.headroom >= 0

    @property
    def tight(self) -> bool:
        """Whether it would not fit if the estimate were as low as it has been seen to be; worth a warning."""
        return self.total * (1 + UNCERTAINTY) > self.capacity

    def bytes_of(self, component: str) -> int:
        """Bytes of one component; 0 where the table has none of this name."""
        return sum(row.bytes for row in self.rows if row.component == component)

    def text_rows(self) -> list[tuple[str, str, str]]:
        """Component, GiB and share of the GPU, as text, with the total and the headroom last."""
        lines = [(row.component, row.bytes) for row in self.rows if row.bytes]
        lines += [("total", self.total), ("headroom", self.headroom)]
        return [(name, f"{size / GIB:.1f}", f"{100 * size / self.capacity:.0f} %") for name, size in lines]
