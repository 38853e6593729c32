"""Compile engine/kernel.c to engine/kernel.wasm, for whoever changes it.

    pip install -e '.[kernel]' && python -m lightning_app.export.page.build_kernel

The compiler is Zig's clang, from the package `ziglang`. kernel.wasm ends with a section that has
the hash of its source; a test compares it, so that the two files cannot drift apart.
"""

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).parent / "engine" / "kernel.c"
KERNEL = SOURCE.with_suffix(".wasm")
SECTION = b"source-sha256"
FLAGS = [
    "-target", "wasm32-freestanding", "-mcpu=baseline+simd128+bulk_memory", "-O3", "-nostdlib",
    "-ffreestanding", "-fno-sanitize=all",
    # JavaScript owns the memory, and needs to know where it may write.
    "-Wl,--no-entry,--import-memory,--export=__heap_base,--strip-all,-z,stack-size=65536",
]  # fmt: skip


def source_hash() -> bytes:
    """SHA-256 of kernel.c, with line ends as git stores them."""
    return hashlib.sha256(SOURCE.read_bytes().replace(b"\r\n", b"\n")).digest()


def recorded_hash(wasm: bytes) -> bytes:
    """The hash of the source that `wasm` was compiled from."""
    section = SECTION + wasm[-32:]
    assert wasm[-len(section) :] == section, "kernel.wasm was not written by build_kernel"
    return wasm[-32:]


def compile_kernel() -> bytes:
    """The contents of kernel.wasm. Raises CalledProcessError if ziglang is missing or fails."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "kernel.wasm"
        command = [sys.executable, "-m", "ziglang", "cc", *FLAGS, "-o", str(out), str(SOURCE)]
        subprocess.run(command, check=True)
        wasm = out.read_bytes()
    # A custom section: id 0, the size of the rest, the name with its size, the contents.
    content = bytes([len(SECTION)]) + SECTION + source_hash()
    return wasm + bytes([0, len(content)]) + content


if __name__ == "__main__":
    KERNEL.write_bytes(compile_kernel())
    print(f"wrote {KERNEL}")
