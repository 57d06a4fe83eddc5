# The app in a container:   docker build -t face-forgery . && docker run -p 7860:7860 face-forgery
# With CUDA:                docker build --build-arg VARIANT=cuda -t face-forgery . && docker run --gpus all ...
# With models of the Hub:   docker build --build-arg HUB_WEIGHTS="ffhq_1024 xception_ffpp" ...
ARG PYTHON=3.12
FROM python:${PYTHON}-slim

# cpu or cuda: which build of torch is installed
ARG VARIANT=cpu
# names of `python -m backend weights list`, separated by spaces; none are baked in unless asked
ARG HUB_WEIGHTS=""

ENV PIP_NO_CACHE_DIR=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

RUN useradd --create-home --uid 1000 user \
    && install --directory --owner user --group user /home/user/app /home/user/weights
WORKDIR /home/user/app

COPY requirements.txt ./
# The CUDA build is what the package index itself has for Linux.
RUN case "$VARIANT" in \
        cpu) pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu ;; \
        cuda) ;; \
        *) echo "VARIANT is cpu or cuda, not $VARIANT" >&2; exit 1 ;; \
    esac \
    && pip install -r requirements.txt

COPY --chown=user:user . .

USER user
ENV HOME=/home/user \
    GRADIO_SERVER_NAME=0.0.0.0 \
    GRADIO_SERVER_PORT=7860 \
    WEIGHTS_CACHE=/home/user/weights \
    FETCH=off
RUN if [ -n "$HUB_WEIGHTS" ]; then python -m backend weights fetch $HUB_WEIGHTS; fi
RUN python -m backend weights verify

EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:7860/health', timeout=5)"]
CMD ["python", "app.py"]
