# The project with everything that it needs, pinned by constraints.txt.
#
#     docker build -t loradag .                                          # with CUDA: PyPI's torch
#     docker build -t loradag --build-arg TORCH_INDEX=URL .              # CPU: PyTorch's CPU index
#     docker run --rm -v loradag:/loradag loradag dvc repro              # add --gpus all
#
# The image has the code and the libraries; what runs make is in the volume /loradag, a copy of the
# code on first use. Secrets come from the environment at run time (-e HF_TOKEN), never the image.
FROM python:3.11-slim

RUN apt-get update \
    && apt-get install -y --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /loradag
COPY pyproject.toml constraints.txt Makefile README.md ./
COPY loradag loradag
ARG TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1
RUN make setup TORCH_INDEX="$TORCH_INDEX"
COPY . .
RUN .venv/bin/dvc config core.no_scm true
ENV PATH=/loradag/.venv/bin:$PATH
CMD ["dvc", "repro"]
