# The fallback as app.py, pushed as the Dockerfile where the app's image does not come up: no package, no bundle.
FROM python:3.11-slim-bookworm
ENV PYTHONUNBUFFERED=1 HOST=0.0.0.0 PORT=7860
WORKDIR /app
COPY . .
RUN useradd --uid 1000 --create-home app
USER 1000
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s \
  CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['PORT'] + '/healthz', timeout=4)"]
CMD ["python", "app.py"]
