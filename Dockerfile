# docker build -t fastarat --build-arg COMMIT=$(git rev-parse HEAD) .
# docker run --gpus all --shm-size 8g -v "$PWD:/workspace" fastarat train cifar10-resnet18-arat --data PATH
# docker run --gpus all --shm-size 8g -v "$PWD:/workspace" fastarat bench   # the ladder, to bench-results/
#
# Runs, rows, data and compiled code are all kept in the mounted folder; with --user "$(id -u):$(id -g)" they are yours.
# The shared memory is for loaders with worker processes; --ipc=host serves as well.
#
# CI runs the three scripts and the entry point on Debian. Untested are the base image and the daemon that builds on
# it, and with them that the base's torch, DALI and apex are found from here.

# The newest of NVIDIA's images whose torch is one that fastarat is tested with (2.11 to 2.13): 2.13, with Triton 3.7,
# CUDA 13.3 and Python 3.12. NVIDIA's "PyTorch release notes" list what each tag holds; those from 26.03 on have a torch
# that is new enough (--build-arg BASE=...).
ARG BASE=nvcr.io/nvidia/pytorch:26.07-py3
FROM ${BASE}

ENV PIP_NO_CACHE_DIR=1 PATH=/opt/venv/bin:${PATH}

WORKDIR /opt/fastarat
COPY docker/system.sh docker/
RUN docker/system.sh
COPY . .
RUN docker/install.sh /opt/venv
RUN docker/ffcv.sh /opt/venv

# What lies in the mounted folder outlives the container, and any --user can write there. PyTorch asks for the user's
# name, which the image need not know.
ENV FASTARAT_DATA=/workspace/data \
    MPLCONFIGDIR=/workspace/.state/cache/matplotlib \
    TRITON_CACHE_DIR=/workspace/.state/cache/triton \
    USER=fastarat \
    XDG_CACHE_HOME=/workspace/.state/cache

# The copy has no history: result rows take their commit from here.
ARG COMMIT=
ENV FASTARAT_COMMIT=${COMMIT}

WORKDIR /workspace
ENTRYPOINT ["/opt/fastarat/docker/entrypoint.sh"]
