"""The machines that artifacts are for, and the quantization schemes that these have kernels for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

VNNI = frozenset(("avx512_vnni", "avx_vnni"))
"""Flags of which each says that a CPU adds u8 x s8 products in 32 bits."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """The machine the artifact is for."""

    name: str
    isa: Literal["x86_64", "aarch64", "wasm32"]
    features: tuple[str, ...] = ()  # CPU flags the scheme's speed relies on, as Linux spells them
    memory_mib: int | None = None

    @property
    def schemes(self) -> tuple[str, ...]:
        """The quantization schemes whose kernels it has, best first; float activations run anywhere.

        Unsigned activations do not fuse on ARM, signed ones not on x86. x86 without VNNI adds two u8 x s8 products in
        16 bits, where they saturate: VNNI must be among the features. WebAssembly's SIMD widens both before it
        multiplies.
        """
        if self.isa == "wasm32":
            return ("u8s8_static", "s8s8_static", "u8s8_dynamic")
        if self.isa == "aarch64":
            return ("s8s8_static", "u8s8_dynamic", "w4_block")
        if any(VNNI.issuperset(feature.split("|")) for feature in self.features):
            return ("u8s8_static", "u8s7_static", "u8s8_dynamic", "w4_block")
        return ("u8s7_static", "w4_block")


X86_VNNI = Device(name="x86 with VNNI", isa="x86_64", features=("avx512_vnni|avx_vnni",))
X86_AVX2 = Device(name="x86 with AVX2", isa="x86_64", features=("avx2",))
BROWSER = Device(name="a browser (WebAssembly with SIMD)", isa="wasm32", memory_mib=2048)
ARM64_DOTPROD = Device(name="arm64 with dot product", isa="aarch64", features=("asimddp",))
