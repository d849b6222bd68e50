"""Let the PyPI wheel of torch be imported where its CUDA packages are not installed.

The wheel's libraries name libcublas, libcudnn and others as needed, so the loader wants those
files, their symbol versions and the symbols, although a CPU never calls them.  For each missing
library this compiles an empty stand-in whose functions report "no device".  Needs gcc and readelf.

usage: python cpu_only_torch.py            (with the Python whose torch it is)
"""
import collections
import pathlib
import re
import subprocess
import sysconfig
import tempfile

LIB = pathlib.Path(sysconfig.get_paths()["purelib"]) / "torch" / "lib"
SYSTEM = re.compile(r"lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s|gomp|z|quadmath|gfortran)\.so|ld-linux|libcuda\.so\.1")
NVIDIA = re.compile(r"(cu[A-Z]|cu(blas|dnn|fft|sparse|solver|da|File|file|pti)|__cuda|p?nccl|nvrtc|nvshmem|nvtx|nvJitLink)")


def readelf(*args):
    return subprocess.run(["readelf", *args], capture_output=True, text=True, check=True).stdout


def survey(files):
    """-> needed libraries, {version: library}, {undefined symbol: version}, defined symbols"""
    needed, owner, wanted, defined = set(), {}, {}, set()
    for f in files:
        needed |= set(re.findall(r"\(NEEDED\).*\[(.+)\]", readelf("-dW", f)))
        lib = None
        for line in readelf("-VW", f).splitlines():
            if m := re.search(r"File: (\S+)", line):
                lib = m[1]
            if lib and (m := re.search(r"Name: (\S+) +Flags", line)):
                owner.setdefault(m[1], lib)
        for line in readelf("--dyn-syms", "-W", f).splitlines():
            col = line.split()
            if len(col) < 8 or not col[0][:-1].isdigit():
                continue
            name, _, version = col[7].partition("@")
            if col[6] == "UND":
                wanted[name] = version.strip("@") or None
            else:
                defined.add(name)
    return needed, owner, wanted, defined


def body(name):
    if name == "__cudaRegisterFatBinary":       # its result is used as a pointer
        return "return (unsigned long long)room;"
    if name.startswith(("cudaGetErrorString", "cudaGetErrorName")):
        return 'return (unsigned long long)"no CUDA here";'
    return "return 0;" if name.startswith("__cuda") else "return 100;"      # 100 = no device


def main():
    files = sorted(str(f) for f in LIB.glob("*.so*"))
    needed, owner, wanted, defined = survey(files)
    have = {pathlib.Path(f).name for f in files}
    missing = sorted(n for n in needed - have if not SYSTEM.match(n))
    parts = collections.defaultdict(set)
    for name, version in wanted.items():
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            continue
        if version and owner.get(version) in missing:
            parts[owner[version]].add(name)
        elif version is None and name not in defined and NVIDIA.match(name):
            parts[missing[0]].add(name)         # no version: any library will do
    for lib in missing:
        with tempfile.TemporaryDirectory() as d:
            src, script = pathlib.Path(d, "s.c"), pathlib.Path(d, "s.map")
            src.write_text("static char room[65536];\n" + "".join(f"unsigned long long {n}(void) {{ {body(n)} }}\n" for n in sorted(parts[lib])))
            cmd = ["gcc", "-shared", "-fPIC", "-w", "-fno-builtin", "-o", str(LIB / lib), str(src), f"-Wl,-soname,{lib}"]
            versions = sorted({wanted[n] for n in parts[lib] if wanted[n]})
            if versions:
                script.write_text("".join(f"{v} {{ global: *; }};\n" for v in versions))
                cmd.append(f"-Wl,--version-script,{script}")
            subprocess.run(cmd, check=True)
        print("stand-in", lib, len(parts[lib]), "symbols")


if __name__ == "__main__":
    main()
