# Debian 12 has no Asterisk; the archive of the next release has 22.
FROM debian:forky-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends asterisk ca-certificates \
 && rm -rf /var/lib/apt/lists/*
ENTRYPOINT ["/usr/sbin/asterisk", "-f"]
