"""Pack what a machine with a GPU lacks that reaches no package index: cuML, Ray and pydantic, in one archive.

    python -m tests.benchmarks.gpu.pack DIR --python 3.12 --architecture 90

It downloads wheels with this Python's pip and writes ``DIR/packages.tar.xz`` (44 MB, 3 minutes), for x86-64 Linux, CUDA
13 and one GPU architecture. Of cuML it keeps what ridge and the lasso need: libcuml has the code of that architecture
alone; libcuvs, libnvforest and libkvikio, which these two never call, are stubs that end the process where they are
called; cudf and nvforest are stubs too. Of Ray it leaves out Java, the dashboard's page and the libraries on top of Ray
Core. torch, NumPy, pandas, SciPy, scikit-learn, pyarrow, cupy, numba-cuda and rich are the machine's own. It needs
``cc`` and ``nm``.
"""

from __future__ import annotations

import argparse
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

_CUML = (
    "cuml-cu13==26.10.0",
    "libcuml-cu13==26.10.0",
    "librmm-cu13==26.10.0",
    "rmm-cu13==26.10.0",
    "pylibraft-cu13==26.10.0",
    "rapids-logger==0.3.0",
    "treelite==4.8.1",
)
_WITHOUT_NEEDS = (*_CUML, "ray==2.60.0")
_WITH_NEEDS = ("pydantic>=2.7", "jsonschema")
_LEFT_OUT = (
    *(f"ray/{part}" for part in ("jars", "rllib", "dashboard/client", "serve", "data", "train", "tune", "llm")),
    *(f"*/{kind}" for kind in ("include", "tests", "*.pyx", "*.pxd", "*.hpp", "*.h", "*.cuh", "*.pth")),
)
_FATBIN, _SECTION = 0xBA55ED50, b".nv_fatbin"
_CUDF = """class Series: pass
class DataFrame: pass
class Index: pass
class MultiIndex: pass
class CategoricalDtype: pass
__version__ = '26.10.2'
from . import pandas
"""
_NVFOREST = """def __getattr__(name):
    if name.startswith('__'):
        raise AttributeError(name)
    return type(name, (), {})
"""
_LOADER = """import ctypes, pathlib

def load_library():
    return [ctypes.CDLL(str(path)) for path in sorted(pathlib.Path(__file__).parent.glob('*.so'))]
"""


def main() -> None:
    """Pack, and say what it takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--python", default="3.12", help="the machine's")
    parser.add_argument(
        "--architecture", type=int, default=90, help="90 is Hopper; 0 keeps the code of all: 50 MB more"
    )
    arguments = parser.parse_args()
    arguments.dir.mkdir(parents=True, exist_ok=True)
    archive = arguments.dir / "packages.tar.xz"
    with tempfile.TemporaryDirectory() as folder:
        wheels, site = Path(folder) / "wheels", Path(folder) / "site"
        download(wheels, arguments.python)
        for wheel in sorted(wheels.glob("*.whl")):
            extract(wheel, site)
        leave_out(site)
        library = site / "libcuml/lib64/libcuml.so"
        if arguments.architecture:
            library.write_bytes(thinned(bytearray(library.read_bytes()), arguments.architecture))
        add_stubs(site, library)
        with tarfile.open(archive, "w:xz", preset=6) as file:
            file.add(site, "site")
    print(f"{archive}: {archive.stat().st_size / 1e6:.1f} MB")


def leave_out(site: Path) -> None:
    """Delete what neither ridge and the lasso nor Ray Core need."""
    for pattern in _LEFT_OUT:
        name = pattern.removeprefix("*/")
        for path in list(site.rglob(name)) if name != pattern else [site / pattern]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def download(folder: Path, python: str) -> None:
    """Wheels for the machine's Python."""
    tags = ["manylinux2014_x86_64", *(f"manylinux_2_{number}_x86_64" for number in (28, 27, 24, 17))]
    target = ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    target += [option for tag in tags for option in ("--platform", tag)]
    command = [sys.executable, "-m", "pip", "download", "-q", "-d", str(folder), *target]
    subprocess.run([*command, "--no-deps", *_WITHOUT_NEEDS], check=True)
    subprocess.run([*command, *_WITH_NEEDS], check=True)


def extract(wheel: Path, site: Path) -> None:
    """As pip does: programs stay programs."""
    with zipfile.ZipFile(wheel) as file:
        for member in file.infolist():
            path = Path(file.extract(member, site))
            mode = member.external_attr >> 16
            if path.is_file() and mode:
                path.chmod(mode & 0o777)


def thinned(library: bytearray, architecture: int) -> bytearray:
    """An ELF library without the device code of all other architectures; what is left of a container moves together."""
    (section_table,) = struct.unpack_from("<Q", library, 0x28)
    number, names = struct.unpack_from("<HH", library, 0x3C)
    sections = [struct.unpack_from("<IIQQQQIIQQ", library, section_table + 64 * i) for i in range(number)]

    def name_of(offset: int) -> bytes:
        start = sections[names][4] + offset
        return bytes(library[start : library.index(0, start)])

    start, size = next((section[4], section[5]) for section in sections if name_of(section[0]) == _SECTION)
    stop = start + size
    while start < stop:
        if struct.unpack_from("<I", library, start)[0] != _FATBIN:
            start += 8
            continue
        _, header, length = struct.unpack_from("<HHQ", library, start + 4)
        first, end = start + header, start + header + length
        kept = b"".join(library[at:after] for at, after, of in pieces(library, first, end) if of == architecture)
        assert kept, f"no code for architecture {architecture}"
        struct.pack_into("<Q", library, start + 8, len(kept))
        library[first:end] = kept + bytes(length - len(kept))
        start = end + -end % 8
    return library


def pieces(library: bytearray, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Start, end and architecture of every piece of device code of a container, with its header."""
    while at < end:
        of_header, of_code = struct.unpack_from("<IQ", library, at + 4)
        (architecture,) = struct.unpack_from("<I", library, at + 28)
        yield at, at + of_header + of_code, architecture
        at += of_header + of_code


def add_stubs(site: Path, library: Path) -> None:
    """Packages and libraries that cuML looks at and never calls on the way of ridge and the lasso."""
    wanted = subprocess.run(["nm", "-D", "--undefined-only", str(library)], capture_output=True, text=True, check=True)
    symbols = [line.split()[1].partition("@")[0] for line in wanted.stdout.splitlines()]
    of_cuvs = [symbol for symbol in symbols if symbol.startswith("_ZN") and "4cuvs" in symbol]
    assert of_cuvs
    traps = [
        f'void s{i}(void) __asm__("{symbol}"); void s{i}(void) {{ __builtin_trap(); }}'
        for i, symbol in enumerate(of_cuvs)
    ]
    for package, libraries in (
        ("libcuvs", {"cuvs": traps, "kvikio": [], "nvforest": []}),
        ("libnvforest", {}),
        ("libraft", {}),
    ):
        folder = site / package
        folder.mkdir()
        (folder / "__init__.py").write_text(_LOADER)
        for name, lines in libraries.items():
            build = ["cc", "-shared", "-fPIC", "-w", f"-Wl,-soname,lib{name}.so", "-o", str(folder / f"lib{name}.so")]
            subprocess.run([*build, "-x", "c", "-"], input="\n".join([*lines, ""]), text=True, check=True)
    for path, text in {
        "cudf/__init__.py": _CUDF,
        "cudf/pandas.py": "LOADED = False\ndef as_proxy_object(x): return x\n",
        "cudf/comm/__init__.py": "",
        "cudf/comm/serialize.py": "",
        "nvforest/__init__.py": _NVFOREST,
    }.items():
        (site / path).parent.mkdir(exist_ok=True, parents=True)
        (site / path).write_text(text)


if __name__ == "__main__":
    main()
