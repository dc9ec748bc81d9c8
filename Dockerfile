# The demo:       docker build -t sipe . && docker run --rm -v "$PWD/runs:/sipe/runs" sipe
# Your own data:  docker run --rm --gpus all --shm-size 8g -v /data:/data sipe bash run_voc.sh ...
# Workers hand their batches over in shared memory, of which Docker gives 64 MB: training with
# workers needs --shm-size 8g or --ipc=host.
FROM python:3.12-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /sipe
COPY requirements.txt requirements-crf.txt ./
RUN pip install --no-cache-dir -r requirements.txt
RUN pip install --no-cache-dir -c requirements-crf.txt cython setuptools \
    && pip install --no-cache-dir --no-build-isolation -r requirements-crf.txt
COPY . .
CMD ["bash", "run_demo.sh"]
