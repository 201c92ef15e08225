"""What wants Transformer Engine in NeMo, without it, for tests only: packed sequences, and adapters beside
megatron-core's own layers. `nemo_cpu.py` imports it where it is told to.
"""

from types import SimpleNamespace

import packed_attention  # noqa: F401 - it works by being imported
from nemo.collections.llm.gpt.model import base
from nemo.collections.llm.peft import lora, utils
from nemo.lightning.pytorch.callbacks.megatron_comm_overlap import MegatronCommOverlapCallback

base.transformer_engine_layer_spec = base.local_layer_spec  # the engine refuses both with its name for these layers
MegatronCommOverlapCallback.setup = lambda *_, **__: None  # it asks the GPU what it is
base.HAVE_TE = True  # so that a batch may do without a mask, which the plain attention makes itself
utils.HAVE_TE = False
lora.te = SimpleNamespace(Linear=type("Linear", (), {}))  # it asks whether a layer is one of these
