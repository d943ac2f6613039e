# Serves any bundle that is mounted, on the CPU, without torch; `detrkit deploy` writes images that hold their bundle.
# From the top of a checkout:
#   docker build --file docker/serve.Dockerfile --tag detrkit-serve .
#   docker run --env DETRKIT_SERVE_TOKEN --publish 127.0.0.1:8000:8000 --volume "$PWD/my-bundle:/bundle:ro" detrkit-serve
FROM python:3.11-slim-bookworm

ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /opt/detrkit

COPY src/detrkit/deployment/requirements-onnxruntime.txt ./requirements.txt
RUN python -m pip install --require-hashes --only-binary :all: -r requirements.txt

COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN python -m pip install --no-deps .

RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin detrkit
USER 10001

EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/ready', timeout=2)"]

ENTRYPOINT ["detrkit", "serve"]
CMD ["/bundle", "--host", "0.0.0.0", "--port", "8000"]
