"""Build the simulated GPU for an environment with a CUDA build of torch, and put it there: `build.py ENVIRONMENT`.

The environment is a throw-away one: its own libcudart, libcublas, libcublasLt, libcudnn and libnccl are kept beside as
`.real` (`--undo` puts them back). torch finds these by RPATH, which no variable overrides; hence links where they lie,
to empty libraries of the same name that load `libsimgpu.so`, in which the functions are.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = ("core", "memory", "graphs", "kernels", "devices", "streams", "driver", "blas", "dnn", "nccl")
VERSIONED = ("libcudart", "libcublas", "libcudnn")
"""libraries whose functions carry the library's name as their version"""

# Products of cuBLAS and what old interfaces of cuDNN compute are launches by name; all else is an empty stub.
PRODUCTS = re.compile(r"cublas(?!Set|Destroy|Create)([SDCZHI]\w*|(Gemm|Dot)\w*)")
LAYERS = re.compile(r"cudnn(Batch|Convolution(?!.*Descriptor)|RNN(Forward|Backward)|PoolingForward|CTCLoss)")
UNVERSIONED = re.compile(r"nccl[A-Z]|cu(?!File)[A-Z][A-Za-z0-9_]+$")


class Environment:
    """Where a virtual environment keeps torch and CUDA's libraries."""

    def __init__(self, folder: Path):
        (self.packages,) = folder.glob("lib/python3*/site-packages")
        self.out = folder / "simgpu"
        nvidia = self.packages / "nvidia"
        self.cuda, self.torch = nvidia / "cu13", self.packages / "torch"
        self.includes = [self.cuda / "include", nvidia / "cudnn" / "include", nvidia / "nccl" / "include"]
        self.includes.append(self.packages / "triton/backends/nvidia/include")  # it has crt/host_defines.h
        self.replaced = {
            "libcudart.so.13": self.cuda / "lib",
            "libcublas.so.13": self.cuda / "lib",
            "libcublasLt.so.13": self.cuda / "lib",
            "libcudnn.so.9": nvidia / "cudnn" / "lib",
            "libnccl.so.2": nvidia / "nccl" / "lib",
        }


def run(*command: object) -> str:
    """What a command prints; where it fails, what it says goes to stderr, and `CalledProcessError` is raised."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    print(done.stderr, end="", file=sys.stderr)
    done.check_returncode()
    return done.stdout


def wanted(environment: Environment) -> set[str]:
    """Every function that torch's libraries ask for, and all of the driver's: Triton's launcher links against some."""
    names = set()
    for library in [*environment.torch.glob("lib/*.so"), *environment.torch.glob("_C*.so")]:
        for line in run("nm", "-D", "--undefined-only", library).splitlines():
            name, _, version = line.split()[-1].partition("@")
            if version in environment.replaced or (UNVERSIONED.match(name) and not version):
                names.add(name)
    header = (environment.includes[0] / "cuda.h").read_text()
    names |= set(re.findall(r"^CUresult CUDAAPI (cu\w+)\(", header, re.MULTILINE))
    return names | set(re.findall(r"^ *# *define +cu\w+ +(cu\w+_v\d)", header, re.MULTILINE))


def stub(name: str) -> str:
    """The C function for what none of the sources define."""
    if PRODUCTS.match(name):
        return f'EXPORT int {name}(void *h) {{ return sim_blas(h, "cublas:{name}"); }}'
    if LAYERS.match(name):
        return f'EXPORT int {name}(void *h) {{ return sim_dnn(h, "cudnn:{name}"); }}'
    error = 801 if re.match(r"cu[A-Z]", name) else 0  # 801: the driver does not support it
    return f'EXPORT int {name}(void) {{ sim_unimplemented("{name}"); return {error}; }}'


def compile_all(environment: Environment) -> Path:
    """libsimgpu.so, with every function that is wanted."""
    out = environment.out
    (out / "nv").mkdir(parents=True, exist_ok=True)
    (out / "nv" / "target").touch()  # cuda_fp16.h wants it, for C++ alone
    flags = [
        "-O1",
        "-g",
        "-fPIC",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fvisibility=hidden",
        f"-I{HERE / 'library'}",
        f"-I{out}",
    ]
    flags += [f"-I{folder}" for folder in environment.includes]
    objects = [out / f"{source}.o" for source in SOURCES]
    for source, compiled in zip(SOURCES, objects, strict=True):
        run("gcc", *flags, "-c", HERE / "library" / f"{source}.c", "-o", compiled)
    symbols = run("nm", "--defined-only", "-g", *objects).splitlines()
    defined = {line.split()[-1] for line in symbols if len(line.split()) == 3}

    def is_there(name: str) -> bool:
        plain = re.sub(r"_v\d$", "", name)
        return name in defined or any(f"{plain}{version}" in defined for version in ("", "_v2", "_v3", "_v4"))

    lines = ['#define EXPORT __attribute__((visibility("default")))', "void sim_unimplemented(const char *name);"]
    lines.append("int sim_blas(void *h, const char *name); int sim_dnn(void *h, const char *name);")
    lines += [stub(name) for name in sorted(wanted(environment)) if not is_there(name)]
    (out / "stubs.c").write_text("\n".join(lines) + "\n")
    run("gcc", *flags, "-c", out / "stubs.c", "-o", out / "stubs.o")
    library = out / "libsimgpu.so"
    library.unlink(missing_ok=True)  # running processes keep theirs
    links = ["-Wl,-soname,libsimgpu.so", "-ldl", "-lpthread"]
    run("gcc", "-shared", "-o", library, *objects, out / "stubs.o", *links)
    return library


def empty_library(environment: Environment, name: str, library: Path) -> Path:
    """An empty library by this name, with the symbol version that programs look for, which loads `library`."""
    out = environment.out
    source, made = out / "empty.c", out / name
    source.write_text("int simgpu_is_here = 1;\n")
    options = [f"-Wl,-soname,{name}", "-Wl,--no-as-needed", f"-Wl,-rpath,{out}"]
    if name.startswith(VERSIONED):
        script = out / f"{name}.map"
        script.write_text(f"{name} {{ global: *; }};\n")
        options.append(f"-Wl,--version-script={script}")
    run("gcc", "-shared", "-fPIC", "-o", made, source, *options, library)
    return made


def put(environment: Environment) -> None:
    """Build all, and let the environment's libraries be the simulated ones."""
    library = compile_all(environment)
    for name, folder in environment.replaced.items():
        if not (folder / f"{name}.real").exists():
            (folder / name).rename(folder / f"{name}.real")
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(empty_library(environment, name, library))
    driver = empty_library(environment, "libcuda.so.1", library)
    for link in (environment.cuda / "lib" / "libcuda.so.1", environment.out / "libcuda.so"):
        link.unlink(missing_ok=True)
        link.symlink_to(driver)


def undo(environment: Environment) -> None:
    """Give the environment its own libraries back."""
    for name, folder in environment.replaced.items():
        if (folder / f"{name}.real").exists():
            (folder / name).unlink()
            (folder / f"{name}.real").rename(folder / name)
    (environment.cuda / "lib" / "libcuda.so.1").unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Put the simulated GPU into a throw-away environment.")
    parser.add_argument("environment", type=Path, help="a virtual environment with a CUDA build of torch")
    parser.add_argument("--undo", action="store_true", help="give it its own libraries back")
    given = parser.parse_args()
    (undo if given.undo else put)(Environment(given.environment.resolve()))


if __name__ == "__main__":
    main()
