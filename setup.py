"""Builds the Cython extensions, and the Python modules of the .proto files. Everything else about the package is in pyproject.toml.

Each extension is one `.pyx` with its `.pyi` beside it; C sources and headers of a kernel stand next to it. Libraries are found by
pkg-config, and a missing one is named together with the Debian package that has it. `ANVIL_STRICT=1` (CI) turns warnings into errors,
`ANVIL_SANITIZE=1` builds with AddressSanitizer.
"""

from __future__ import annotations

import os
import subprocess
import sys
from glob import glob

from Cython.Build import cythonize
from grpc_tools import protoc
from setuptools import Extension, setup

DEBIAN_PACKAGES = {
    "libisal": "libisal-dev",
    "libcrypto": "libssl-dev",
    "libxxhash": "libxxhash-dev",
    "libnghttp2": "libnghttp2-dev",
}

# extension: (C sources beside the .pyx, pkg-config libraries)
EXTENSIONS: dict[str, tuple[list[str], list[str]]] = {
    "anvil._ec.pool": ([], []),
    "anvil._ec.pieces": ([], []),
    "anvil._ec.codec": ([], ["libisal"]),
    "anvil._ec.fileio": ([], []),
    "anvil._ec.buffers": ([], []),
    "anvil._ec.stripe": (
        ["kernels/gcm_vaes.c", "kernels/xxh3_baseline.c", "kernels/xxh3_avx2.c", "kernels/xxh3_avx512.c"],
        ["libisal", "libcrypto", "libxxhash"],
    ),
    "anvil._ec.digest": (
        [f"kernels/{name}.c" for name in ("digests", "lanes", "md5", "md5_avx2", "md5_avx512vl", "md5_avx512", "crc64")],
        ["libisal", "libcrypto"],
    ),
    "anvil.auth.sigv4": ([], ["libcrypto"]),
    "anvil.bench.outgoing": ([], ["libcrypto"]),
    "anvil.bench.exchange": ([], []),
    "anvil.wire.awschunked": ([], ["libcrypto"]),
    "anvil.wire.grpc": ([], []),
    "anvil.wire.http2": ([], ["libnghttp2"]),
}


def pkg_config(library: str, flag: str) -> list[str]:
    try:
        out = subprocess.run(["pkg-config", flag, library], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        sys.exit(
            f"{library} was not found by pkg-config: install {DEBIAN_PACKAGES[library]} and pkg-config (make build does it with apt)"
        )
    return out.stdout.split()


def extension(name: str, sources: list[str], libraries: list[str]) -> Extension:
    folder = os.path.join(*name.split(".")[:-1])
    compile_args = ["-O3", "-D_GNU_SOURCE", "-fno-strict-aliasing", "-pthread", "-Wall", "-Wextra"]
    link_args = ["-pthread"]
    if os.environ.get("ANVIL_STRICT") == "1":
        compile_args.append("-Werror")
    # What Cython itself generates is not ours to mend.
    compile_args += [
        "-Wno-unused-parameter",
        "-Wno-unused-function",
        "-Wno-missing-field-initializers",
        "-Wno-cast-function-type",
    ]
    compile_args += ["-Wno-deprecated-declarations"]
    if os.environ.get("ANVIL_SANITIZE") == "1":
        compile_args += ["-fsanitize=address", "-fno-omit-frame-pointer", "-g", "-O1"]
        link_args += ["-fsanitize=address"]
    for library in libraries:
        compile_args += pkg_config(library, "--cflags")
        link_args += pkg_config(library, "--libs")
    return Extension(
        name,
        [name.replace(".", os.sep) + ".pyx", *(os.path.join(folder, source) for source in sources)],
        extra_compile_args=compile_args,
        extra_link_args=link_args,
        include_dirs=["anvil/_ec"],
        depends=[
            os.path.join(place, header)
            for place in ("anvil/_ec", "anvil/_ec/kernels", "anvil/bench", "anvil/wire")
            for header in os.listdir(place)
            if header.endswith((".h", ".pxd", ".pxi"))
        ],
    )


def generate_protos() -> None:
    """Beside each .proto file its messages, their types, and stubs for grpcio."""
    well_known = os.path.join(os.path.dirname(protoc.__file__), "_proto")
    out = ["--python_out=.", "--pyi_out=.", "--grpc_python_out=."]
    files = sorted(glob("anvil/**/proto/*.proto", recursive=True))
    if protoc.main(["protoc", "-I.", f"-I{well_known}", *out, *files]) != 0:
        sys.exit("the .proto files could not be compiled")


generate_protos()
setup(
    ext_modules=cythonize(
        [extension(name, *spec) for name, spec in EXTENSIONS.items()],
        compiler_directives={"language_level": 3, "embedsignature": True},
        nthreads=os.cpu_count() or 1,
    )
)
