# raftd in a container: one node, its data in /data. conf/compose.yaml runs three.
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
COPY setup.py pyproject.toml README.md LICENSE ./
COPY raftd raftd
COPY twisted_plugins twisted_plugins
# twistd writes its cache of plugins now, for it may not later; what installs is not needed to run.
RUN python3 -m venv /opt/raftd \
 && /opt/raftd/bin/pip install --no-cache-dir . \
 && /opt/raftd/bin/twistd --help > /dev/null \
 && /opt/raftd/bin/pip uninstall --yes --quiet setuptools pip

FROM ${BASE}
RUN groupadd --gid 10001 raftd \
 && useradd --uid 10001 --gid raftd --home-dir /data --no-create-home --shell /usr/sbin/nologin raftd \
 && install --directory --owner raftd --group raftd --mode 0700 /data /tls
COPY --from=build /opt/raftd /opt/raftd
COPY conf/container.yaml /etc/raftd/raftd.yaml
ENV PATH=/opt/raftd/bin:$PATH
# A number, so that Kubernetes can see that it is not root.
USER 10001:10001
WORKDIR /data
VOLUME /data
# line, client, peer, http. Without TLS leave the peer listener inside the containers' own network.
EXPOSE 11300 11301 11302 11303
# Alive means that the client listener answers; a node that waits for a majority is alive.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD raftd status "$(hostname):11301" > /dev/null || exit 1
STOPSIGNAL SIGTERM
# No pidfile: one that a killed container left behind would keep the next from starting.
ENTRYPOINT ["twistd", "--nodaemon", "--pidfile=", "raftd"]
CMD ["--config", "/etc/raftd/raftd.yaml"]
