# syntax=docker/dockerfile:1.7
# chatbox as an image that holds one file that runs: no shell, no package manager, no credentials.
#
#   docker build --tag chatbox:0.1.0 .
#   docker run --read-only --volume chatbox:/data --publish 8443:8443 --publish 8443:8443/udp ... chatbox:0.1.0
#
# What it must be told, and how three of them run together: deployments/README.md.

FROM rust:1.95.0-slim-bookworm AS build
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
COPY .cargo .cargo
COPY src src
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target,sharing=locked \
    cargo build --locked --release --bin chatbox && install -D target/release/chatbox /image/chatbox
# The libraries that it names, where its loader looks for them, what TLS trusts, and a place for data.
RUN ldd /image/chatbox | grep -o '/[^ ]*' | xargs -I {} install -D {} /image{} \
    && install -D -m 644 /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ca-certificates.crt \
    && install -d -m 700 -o 10001 -g 10001 /image/data

FROM scratch
COPY --from=build /image /
# Everything that is written lies in the volume; the root may be read-only.
VOLUME /data
WORKDIR /data
USER 10001:10001
ENV CHATBOX_DATA_DIR=/data \
    CHATBOX_LISTEN__HTTP=0.0.0.0:8080 \
    CHATBOX_LISTEN__QUIC=0.0.0.0:8443 \
    CHATBOX_LISTEN__OPS=0.0.0.0:8081
EXPOSE 8080/tcp 8443/tcp 8443/udp 8081/tcp
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s --retries=3 CMD ["/chatbox", "healthcheck"]
ENTRYPOINT ["/chatbox"]
