"""What the machine's processor can do."""

import torch


def cpu_computes_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16; without them it emulates products, up to 20 times slower than float32."""
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
