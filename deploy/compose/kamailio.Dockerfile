FROM debian:12-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends kamailio kamailio-extra-modules kamailio-utils-modules \
    kamailio-json-modules kamailio-sqlite-modules sipsak \
 && rm -rf /var/lib/apt/lists/*
ENTRYPOINT ["/usr/sbin/kamailio"]
