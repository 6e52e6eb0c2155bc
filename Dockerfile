# LoRA Studio in a container: docker build -t lora-studio --build-arg TORCH=cuda .
#   docker run --rm -p 127.0.0.1:7860:7860 -v lora-studio:/workspace lora-studio            (CPU)
#   docker run --rm -p 127.0.0.1:7860:7860 --gpus all -v lora-studio:/workspace lora-studio (CUDA)
# It prints the address to open, with the owner's token.
FROM python:3.11-slim-bookworm

ARG TORCH=cpu
WORKDIR /app
COPY requirements.txt .
RUN pin="$(grep '^torch==' requirements.txt)" \
 && if [ "$TORCH" = cpu ]; then \
      pip install --no-cache-dir "$pin" --index-url https://download.pytorch.org/whl/cpu; \
    else pip install --no-cache-dir "$pin"; fi \
 && pip install --no-cache-dir -r requirements.txt \
 && useradd --create-home --uid 1000 studio \
 && install -d -m 700 -o studio -g studio /workspace
COPY . .

USER studio
ENV LORA_STUDIO_WORKSPACE=/workspace PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
VOLUME /workspace
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s CMD \
    ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:7860/healthz', timeout=4)"]
# Other machines reach a container's port, so it asks for the token that it prints at the start.
CMD ["python", "app.py", "--no-browser", "--port", "7860", "--listen", \
     "--public-url", "http://localhost:7860"]
