# The service, for a PostgreSQL that runs elsewhere:
#
#     docker build -t jobqueue .
#     docker run -p 127.0.0.1:8080:8080 -e DATABASE_URL=postgresql://... -e JOBQUEUE_TOKENS=submit:sha256:... jobqueue
#
# For handlers of your own, start from it: COPY them to /app, pip install what they need, and CMD ["serve", "your_module"].

FROM python:3.11-slim AS build
WORKDIR /src
# schema.sql is in the package too, as a symbolic link to this one.
COPY pyproject.toml README.md LICENSE schema.sql ./
COPY jobqueue jobqueue
RUN python -m venv /opt/jobqueue && /opt/jobqueue/bin/pip install --no-cache-dir .

FROM python:3.11-slim
# An init for PID 1: it reaps the processes that handlers leave behind, which would otherwise stay as zombies.
RUN apt-get update && apt-get install -y --no-install-recommends tini && rm -rf /var/lib/apt/lists/*
# By number, so that an orchestrator can see that it is not root.
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin jobqueue
COPY --from=build /opt/jobqueue /opt/jobqueue
WORKDIR /app
COPY examples examples
USER 10001:10001

# Off loopback, as a container must be, the service does not start without a token in JOBQUEUE_TOKENS, or
# in the file that JOBQUEUE_TOKEN_FILE names. `docker run --rm jobqueue token create --role submit` makes one.
ENV PATH=/opt/jobqueue/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    JOBQUEUE_HOST=0.0.0.0
EXPOSE 8080

# Ready, and not only alive: urlopen raises at a 503. This path needs no token (but with JOBQUEUE_OPEN=none).
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/health/ready', timeout=2)"]

# tini (-s: also where Docker's own init is PID 1) hands the SIGTERM of `docker stop` on to the service, which hands its jobs back. That
# takes its grace period (20 s) and up to 5 s: stop it with more patience than Docker's 10 s, as compose.yaml does.
ENTRYPOINT ["tini", "-s", "--", "jobqueue"]
CMD ["serve", "examples.quickstart"]
