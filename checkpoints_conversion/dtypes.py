"""The element types that a checkpoint's weights have, under safetensors' names, and what each is called elsewhere."""

ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2,
    "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8,
}  # fmt: skip
"""Bytes of one element of each type that a safetensors file may hold (github.com/huggingface/safetensors)."""

WEIGHTS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The types of weights that convert, and torch's names for them."""

FROM_TORCH = {torch_name: name for name, torch_name in WEIGHTS.items()}
