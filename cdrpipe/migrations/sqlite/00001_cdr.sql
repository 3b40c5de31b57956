-- +goose Up
-- Times are microseconds since 1970 UTC; NULL is unknown or did not happen.
CREATE TABLE cdr (
    id          TEXT    NOT NULL PRIMARY KEY, -- 32 hex digits
    time_us     INTEGER NOT NULL,             -- first time known of the leg; 0: none
    schema      INTEGER NOT NULL,
    kind        TEXT    NOT NULL,             -- leg, refused, failover
    source      TEXT    NOT NULL,             -- the best of those that reported the leg
    sources     TEXT    NOT NULL,             -- who reported the leg, with commas; empty: source alone
    prov        TEXT    NOT NULL,             -- JSON object: source -> fields that it gave; empty: none but source
    seq         INTEGER NOT NULL,             -- order in which rows came or changed; near microseconds since 1970
    cell        TEXT    NOT NULL,
    node        TEXT    NOT NULL,
    sbc         TEXT    NOT NULL,
    pool        TEXT    NOT NULL,
    tenant      TEXT    NOT NULL,
    revision    INTEGER NOT NULL,
    leg         TEXT    NOT NULL,
    call        TEXT    NOT NULL,             -- equals leg on the A leg
    sip_call_id TEXT    NOT NULL,
    direction   TEXT    NOT NULL,
    caller      TEXT    NOT NULL,
    callee      TEXT    NOT NULL,
    start_us    INTEGER,
    ring_us     INTEGER,
    answer_us   INTEGER,
    end_us      INTEGER,
    billed_ms   INTEGER NOT NULL,
    sip_code    INTEGER NOT NULL,             -- 0: unknown
    q850        INTEGER NOT NULL,             -- 0: unknown
    cause       TEXT    NOT NULL,
    codec       TEXT    NOT NULL,
    hangup_by   TEXT    NOT NULL,             -- peer, switch; empty: unknown
    rtp_in      INTEGER,
    rtp_out     INTEGER,
    rtp_lost    INTEGER,
    jitter_ms   REAL,
    mos         REAL,
    clock_offset_ns INTEGER NOT NULL,         -- the node's clock minus the bridge's
    attrs       TEXT    NOT NULL,             -- JSON object; empty: none
    gap         TEXT    NOT NULL              -- id of the gap in which the leg ended unseen
) WITHOUT ROWID;

CREATE INDEX cdr_by_time   ON cdr (time_us, id);
CREATE INDEX cdr_by_tenant ON cdr (tenant, time_us, id);
CREATE INDEX cdr_by_call   ON cdr (call, time_us, id);
CREATE INDEX cdr_by_seq    ON cdr (seq, id);

-- The table cdr summed up by the minute of time_us, kept in the same
-- transaction as the rows themselves.
CREATE TABLE minute (
    minute     INTEGER NOT NULL,              -- since 1970
    tenant     TEXT    NOT NULL,
    pool       TEXT    NOT NULL,
    legs       INTEGER NOT NULL,
    calls      INTEGER NOT NULL,              -- A legs
    answered   INTEGER NOT NULL,              -- A legs
    refused    INTEGER NOT NULL,
    failovers  INTEGER NOT NULL,
    gapped     INTEGER NOT NULL,
    billed_ms  INTEGER NOT NULL,              -- of A legs
    last_us    INTEGER NOT NULL,              -- newest end, or else time_us
    last_cause TEXT    NOT NULL,
    PRIMARY KEY (minute, tenant, pool)
) WITHOUT ROWID;

CREATE TABLE gap (
    id      TEXT    NOT NULL PRIMARY KEY,
    cell    TEXT    NOT NULL,
    node    TEXT    NOT NULL,
    from_us INTEGER NOT NULL,
    to_us   INTEGER,                          -- NULL: still open
    reason  TEXT    NOT NULL,
    legs    TEXT    NOT NULL                  -- JSON array of the legs that ended unseen
) WITHOUT ROWID;

-- What the switches themselves said, gzip, for a shorter time.
CREATE TABLE raw (
    id        TEXT    NOT NULL,               -- of the record
    hash      TEXT    NOT NULL,               -- of payload
    stored_us INTEGER NOT NULL,
    payload   BLOB    NOT NULL,
    PRIMARY KEY (id, hash)
);

CREATE INDEX raw_by_time ON raw (stored_us);

CREATE INDEX gap_by_time ON gap (from_us, id);

-- Payloads of the stream that are no entries.
CREATE TABLE quarantine (
    id      TEXT    NOT NULL PRIMARY KEY,     -- SHA-256 of the payload
    time_us INTEGER NOT NULL,                 -- when it was first met
    reason  TEXT    NOT NULL,
    payload BLOB    NOT NULL
) WITHOUT ROWID;

-- +goose Down
DROP TABLE quarantine;
DROP TABLE raw;
DROP TABLE gap;
DROP TABLE minute;
DROP TABLE cdr;
