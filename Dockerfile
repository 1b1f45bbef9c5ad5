# docker build -t fastarat .
# docker run --gpus all --shm-size 8g -v "$PWD:/workspace" fastarat train cifar10-resnet18-arat --data PATH
#
# CI runs both scripts below on Debian. Untested are only the base image and the daemon that would build it.
ARG BASE=pytorch/pytorch:2.13.0-cuda13.0-cudnn9-runtime
FROM ${BASE}

# The image is the environment: a Python that its distribution manages may be installed into.
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_CACHE_DIR=1

WORKDIR /opt/fastarat
COPY docker/system.sh docker/
RUN docker/system.sh
COPY . .
RUN docker/install.sh

WORKDIR /workspace
ENTRYPOINT ["fastarat"]
