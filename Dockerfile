# D-FINE x DINOv3 in a container, for a CPU or for NVIDIA GPUs. It is linted, but has not been built or run:
# no container runtime was available (docs/environments.md has the commands).
#
#   docker build -t dfine .                            # CPU
#   docker build -t dfine:cuda --build-arg TORCH=cu128 .   # CUDA; the host needs only the driver

ARG PYTHON=3.12

# --- the wheel, and an environment with everything that it needs
FROM python:${PYTHON}-slim AS build

# build of torch: cpu, or a CUDA version such as cu126, cu128 or cu130
ARG TORCH=cpu
# extras of the package, such as "tools" for ONNX, OpenVINO and videos; empty for none
ARG EXTRAS=tools

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/dfine
ENV PATH=/opt/dfine/bin:$PATH

# first and alone, so that changes of the source do not install torch again
RUN pip install "torch>=2.10" "torchvision>=0.25" --index-url "https://download.pytorch.org/whl/${TORCH}"

WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY src src
# the source above has no version to choose
# hadolint ignore=DL3013
RUN pip install ".${EXTRAS:+[${EXTRAS}]}"

# --- the image: Python and the environment
FROM python:${PYTHON}-slim

COPY --from=build /opt/dfine /opt/dfine

# Files that a run writes belong to this user; `docker run --user` replaces it.
ARG USER_ID=1000
RUN useradd --create-home --uid "${USER_ID}" dfine \
    && install --directory --owner=dfine /work
ENV PATH=/opt/dfine/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/home/dfine
# by number, so that Kubernetes sees that it is not root
USER ${USER_ID}

# data, weights and runs are mounted here
WORKDIR /work
ENTRYPOINT ["dfine"]
CMD ["--help"]
