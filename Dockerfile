# A machine with NVIDIA GPUs and the container toolkit:
#   docker build -t mcit . && docker run --gpus all --ipc host -v "$PWD":/work mcit run configs/demo.yaml
FROM nvidia/cuda:12.8.1-cudnn-runtime-ubuntu24.04

RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv git && rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/mcit/bin:$PATH HF_HOME=/work/.cache/huggingface MCIT_CACHE=/work/.cache/mcit
RUN python3 -m venv /opt/mcit
COPY . /opt/src
# torch with its own CUDA libraries from the package index; the other versions are those tested together
RUN pip install --no-cache-dir torch && grep -v '^torch==' /opt/src/constraints.txt > /opt/constraints.txt \
    && pip install --no-cache-dir -c /opt/constraints.txt "/opt/src[tensorboard,routers]"
WORKDIR /work
ENTRYPOINT ["mcit"]
CMD ["doctor"]
