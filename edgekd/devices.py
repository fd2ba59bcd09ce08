"""The machines that artifacts are for, and the quantization schemes that these have kernels for."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "ANDROID_ARM64",
    "ARM64_DOTPROD",
    "BROWSER",
    "DEVICES",
    "IOS_ARM64",
    "RASPBERRY_PI_4",
    "RASPBERRY_PI_5",
    "X86_AVX2",
    "X86_VNNI",
    "Device",
]

VNNI = frozenset(("avx512_vnni", "avx_vnni"))
"""Flags of which each says that a CPU adds u8 x s8 products in 32 bits."""
DOT_PRODUCT = frozenset(("asimddp",))
"""What Linux calls the same on arm64."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """The machine the artifact is for."""

    name: str
    isa: Literal["x86_64", "aarch64", "wasm32"]
    features: tuple[str, ...] = ()  # CPU flags the scheme's speed relies on, as Linux spells them
    without: tuple[str, ...] = ()  # flags that it has not: a CPU that has them is faster
    cores: int | None = None  # which one inference may have at most: ``Bench.threads`` stay within
    memory_mib: int | None = None
    system: Literal["android", "ios", "linux"] | None = None  # ``None``: not said

    @property
    def schemes(self) -> tuple[str, ...]:
        """The quantization schemes whose kernels it has, best first; float activations run anywhere.

        Signed activations do not fuse on x86; on ARM both do. x86 without VNNI adds two u8 x s8 products in 16 bits,
        where they saturate: VNNI must be among the features. WebAssembly's SIMD widens both before it multiplies.
        """
        if self.isa == "wasm32":
            return ("u8s8_static", "s8s8_static", "u8s8_dynamic")
        if self.isa == "aarch64":
            return ("u8s8_static", "s8s8_static", "u8s8_dynamic", "w4_block")
        if self._has(VNNI):
            return ("u8s8_static", "u8s7_static", "u8s8_dynamic", "w4_block")
        return ("u8s7_static", "w4_block")

    def warning(self, scheme: str) -> str | None:
        """What to know of the speed of ``scheme`` there before anything is trained; ``None``: it is made for it."""
        if scheme == "w4_block":
            return "size win, no speed win: activations and sums stay in float, and 4-bit weights are unpacked to it"
        if self.isa == "aarch64" and not self._has(DOT_PRODUCT):
            return (
                "size win, little speed win: this CPU has no dot product of bytes (asimddp), "
                "and multiplies them with about as many instructions as floats"
            )
        if self.isa == "x86_64" and not self._has(VNNI):
            return (
                "size win, less speed win than with VNNI: adding products of bytes takes three instructions instead of "
                "one, and weights have 7 bits, so that sums of two products stay within 16"
            )
        return None

    def differs(self, isa: str, flags: Collection[str]) -> list[str]:
        """What tells it from a CPU of that ``isa`` and those ``flags``, as far as speed depends on it.

        Its instruction set, a flag that the CPU lacks (``a|b``: both), or ``no x`` for one that only the CPU has.
        """
        if self.isa != isa:
            return [self.isa]
        lacks = [feature for feature in self.features if set(flags).isdisjoint(feature.split("|"))]
        return lacks + [f"no {flag}" for flag in self.without if flag in flags]

    def _has(self, flags: frozenset[str]) -> bool:
        return any(flags.issuperset(feature.split("|")) for feature in self.features)


X86_VNNI = Device(name="x86 with VNNI", isa="x86_64", features=("avx512_vnni|avx_vnni",), cores=4, memory_mib=8192)
X86_AVX2 = Device(
    name="x86 with AVX2",
    isa="x86_64",
    features=("avx2",),
    without=("avx512_vnni", "avx_vnni"),
    cores=4,
    memory_mib=8192,
)
BROWSER = Device(name="a browser (WebAssembly with SIMD)", isa="wasm32", cores=1, memory_mib=2048)
ARM64_DOTPROD = Device(name="arm64 with dot product", isa="aarch64", features=("asimddp",))
RASPBERRY_PI_5 = Device(
    name="Raspberry Pi 5 (Cortex-A76)",
    isa="aarch64",
    features=("asimddp",),
    cores=4,
    memory_mib=2048,
    system="linux",
)
RASPBERRY_PI_4 = Device(
    name="Raspberry Pi 4 (Cortex-A72)",
    isa="aarch64",
    without=("asimddp",),
    cores=4,
    memory_mib=2048,
    system="linux",
)
ANDROID_ARM64 = Device(
    name="Android phone (arm64 with dot product)",
    isa="aarch64",
    features=("asimddp",),
    cores=8,
    memory_mib=4096,
    system="android",
)
IOS_ARM64 = Device(
    name="iPhone (arm64 with dot product)",
    isa="aarch64",
    features=("asimddp",),
    cores=6,
    memory_mib=4096,
    system="ios",
)
DEVICES = (X86_VNNI, X86_AVX2, ARM64_DOTPROD, RASPBERRY_PI_5, RASPBERRY_PI_4, ANDROID_ARM64, IOS_ARM64, BROWSER)
