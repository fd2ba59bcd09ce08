"""The same artifact on other instruction sets: run under QEMU's user-mode emulation, and compared with this CPU."""
