# Trains, evaluates and exports, on NVIDIA GPUs or the CPU: torch from PyPI brings CUDA, the host its driver and the
# NVIDIA Container Toolkit. From the top of a checkout:
#   docker build --file docker/train.Dockerfile --tag detrkit-train .
#   docker run --gpus all --ipc host --volume "$PWD:/work" detrkit-train train --data my-dataset --run runs/street
FROM python:3.11-slim-bookworm

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 UV_NO_CACHE=1

WORKDIR /opt/detrkit

# All that detrkit can use, in versions that were tested, each held to its hash.
RUN python -m pip install uv
COPY requirements.txt ./
RUN uv pip install --system --require-hashes --requirement requirements.txt

COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN uv pip install --system --no-deps .

# A user without rights, whose home is for caches alone; runs are written to what is mounted.
RUN useradd --uid 10001 --create-home detrkit
USER 10001
ENV DETRKIT_CACHE=/home/detrkit/cache
WORKDIR /work
ENTRYPOINT ["detrkit"]
CMD ["doctor"]
