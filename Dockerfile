# D-FINE x DINOv3 in a container, for a CPU or for NVIDIA GPUs. It is linted, but has not been built or run:
# no container runtime was available (docs/environments.md has the commands).
#
#   docker build -t dfine .                                   # CUDA, and a CPU; the host needs only the driver
#   docker build -t dfine:cpu --build-arg TORCH_INDEX=ADDRESS .  # CPU only, smaller: docs/environments.md

ARG PYTHON=3.12

# --- the wheel, and an environment with everything that it needs
FROM python:${PYTHON}-slim AS build

# address of the package index for torch; empty for pip's own, whose torch runs on GPUs and on a CPU
ARG TORCH_INDEX=""
# extras of the package, such as "tools" for ONNX, OpenVINO and videos; empty for none
ARG EXTRAS=tools

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/dfine
ENV PATH=/opt/dfine/bin:$PATH

# first and alone, so that changes of the source do not install torch again
# the bounds of pyproject.toml; hadolint takes the option for a package
# hadolint ignore=DL3013
RUN pip install "torch>=2.10" "torchvision>=0.25" ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"}

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
    && install --directory --owner=dfine /workspace
ENV PATH=/opt/dfine/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/home/dfine
# by number, so that Kubernetes sees that it is not root
USER ${USER_ID}

# data, weights and runs are mounted here
WORKDIR /workspace
ENTRYPOINT ["dfine"]
CMD ["--help"]
