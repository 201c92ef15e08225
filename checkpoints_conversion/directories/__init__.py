"""The directories that an import can make. A new one is a small file beside these, and its name in `DIRECTORIES`."""

from checkpoints_conversion.directories.bridge import BRIDGE
from checkpoints_conversion.directories.directory import Directory
from checkpoints_conversion.directories.megatron_lm import MEGATRON_LM
from checkpoints_conversion.directories.nemo import NEMO

DIRECTORIES: dict[str, Directory] = {"megatron": MEGATRON_LM, "nemo": NEMO, "bridge": BRIDGE}
