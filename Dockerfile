# The service, for a PostgreSQL that runs elsewhere:
#
#     docker build -t jobqueue .
#     docker run -p 127.0.0.1:8080:8080 -e DATABASE_URL=postgresql://... -e JOBQUEUE_TOKENS=submit:sha256:... jobqueue
#
# To add your own handlers, build an image FROM this one: COPY them to /app, pip install their requirements, and set
# CMD ["serve", "your_module"].

FROM python:3.11-slim AS build
WORKDIR /src
# The package contains a symbolic link to this schema.sql.
COPY pyproject.toml README.md LICENSE schema.sql ./
COPY jobqueue jobqueue
RUN python -m venv /opt/jobqueue && /opt/jobqueue/bin/pip install --no-cache-dir .

FROM python:3.11-slim
# tini is the init process (PID 1). It reaps the processes that handlers leave behind, which would otherwise stay as zombies.
RUN apt-get update && apt-get install -y --no-install-recommends tini && rm -rf /var/lib/apt/lists/*
# The user has a numeric id, so that an orchestrator can check that it is not root.
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin jobqueue
COPY --from=build /opt/jobqueue /opt/jobqueue
WORKDIR /app
COPY examples examples
USER 10001:10001

# In a container, the service must listen on all addresses, not only on loopback. So it does not start without a token in
# JOBQUEUE_TOKENS, or in the file that JOBQUEUE_TOKEN_FILE names. To create a token:
# `docker run --rm jobqueue token create --role submit`.
ENV PATH=/opt/jobqueue/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    JOBQUEUE_HOST=0.0.0.0
EXPOSE 8080

# Check that the service is ready, not only that it responds: urlopen raises an error for a 503. This path needs no token, except
# with JOBQUEUE_OPEN=none.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/health/ready', timeout=2)"]

# tini forwards the SIGTERM of `docker stop` to the service, which then releases its jobs. (With -s, tini also works if Docker's own
# init is PID 1.) The shutdown takes up to the grace period (20 s) plus 5 s. Docker waits only 10 s by default, so set a longer
# timeout, as compose.yaml does.
ENTRYPOINT ["tini", "-s", "--", "jobqueue"]
CMD ["serve", "examples.quickstart"]
