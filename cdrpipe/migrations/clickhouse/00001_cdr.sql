-- Templates: {{db}} is the database, {{on}} the ON CLUSTER clause of a cluster
-- or nothing, {{engine NAME TABLE ARGS}} the engine, with its path and replica
-- on a cluster. Every statement may run again: ClickHouse has no transaction
-- over them.
--
-- Times named _us are microseconds since 1970 UTC; NULL is unknown or did not
-- happen.

-- Every report of every leg, each once: the truth that the table cdr is made
-- of. day is that of the report's own start; 1970-01-01 if it has none.
CREATE TABLE IF NOT EXISTS {{db}}.report {{on}} (
    day    Date,
    id     FixedString(16),
    hash   FixedString(16),                      -- of the report
    stored DateTime DEFAULT now(),
    record String CODEC(ZSTD(1)),                -- JSON
    raw    String CODEC(NONE),                   -- the switch's own words, gzip, for a shorter time
    INDEX by_id id TYPE bloom_filter(0.01) GRANULARITY 1
) ENGINE = {{engine "ReplacingMergeTree" "report" ""}}
PARTITION BY day ORDER BY (day, id, hash)
SETTINGS index_granularity = 2048, non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1;

-- What all reports of a leg say together: ask it with FINAL. A row replaces
-- one that was made of fewer reports. A report can move its leg to another
-- day; a row with gone = 1 then takes the other day's row away.
CREATE TABLE IF NOT EXISTS {{db}}.cdr {{on}} (
    day         Date,                            -- of start; 1970-01-01 if it is unknown
    id          FixedString(16),
    reports     UInt16,                          -- how many reports the row is made of
    seq         Int64  DEFAULT toUnixTimestamp64Micro(now64(6)), -- when it was stored, by the server's clock
    ver         UInt64 DEFAULT bitOr(bitShiftLeft(toUInt64(least(reports, 2047)), 53), toUInt64(seq)),
    gone        UInt8  DEFAULT 0,
    time_us     Int64,                           -- first time known of the leg; 0: none
    schema      Int64,
    kind        LowCardinality(String),          -- leg, refused, failover
    source      LowCardinality(String),          -- the best of those that reported the leg
    sources     Array(LowCardinality(String)),   -- all that reported the leg, sorted
    prov        Map(LowCardinality(String), String), -- source -> fields that it, and not source, gave
    cell        LowCardinality(String),
    node        LowCardinality(String),
    sbc         LowCardinality(String),
    pool        LowCardinality(String),
    tenant      LowCardinality(String),
    revision    UInt64,
    leg         String,
    call        String,                          -- equals leg on the A leg
    sip_call_id String,
    direction   LowCardinality(String),
    caller      String,
    callee      String,
    start_us    Nullable(Int64),
    ring_us     Nullable(Int64),
    answer_us   Nullable(Int64),
    end_us      Nullable(Int64),
    billed_ms   Int64,
    sip_code    Int64,                           -- 0: unknown
    q850        Int64,                           -- 0: unknown
    cause       LowCardinality(String),
    codec       LowCardinality(String),
    hangup_by   LowCardinality(String),          -- peer, switch; empty: unknown
    rtp_in      Nullable(Int64),
    rtp_out     Nullable(Int64),
    rtp_lost    Nullable(Int64),
    jitter_ms   Nullable(Float64),
    mos         Nullable(Float64),
    clock_offset_ns Int64,                       -- the node's clock minus the bridge's
    attrs       Map(LowCardinality(String), String),
    gap         String,                          -- id of the gap in which the leg ended unseen

    id_hex      String ALIAS lower(hex(id)),     -- for people and dashboards
    time        DateTime64(6, 'UTC') ALIAS fromUnixTimestamp64Micro(time_us, 'UTC'),
    start       Nullable(DateTime64(6, 'UTC')) ALIAS fromUnixTimestamp64Micro(start_us, 'UTC'),
    ring        Nullable(DateTime64(6, 'UTC')) ALIAS fromUnixTimestamp64Micro(ring_us, 'UTC'),
    answer      Nullable(DateTime64(6, 'UTC')) ALIAS fromUnixTimestamp64Micro(answer_us, 'UTC'),
    end         Nullable(DateTime64(6, 'UTC')) ALIAS fromUnixTimestamp64Micro(end_us, 'UTC'),

    INDEX by_seq seq TYPE minmax GRANULARITY 1,
    INDEX by_call call TYPE bloom_filter(0.01) GRANULARITY 1
) ENGINE = {{engine "ReplacingMergeTree" "cdr" "ver, gone"}}
PARTITION BY day ORDER BY (day, id)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1;

-- Times in which a node was not heard. The functions do what MergeGap does.
CREATE TABLE IF NOT EXISTS {{db}}.gap {{on}} (
    id      String,
    cell    SimpleAggregateFunction(max, String),
    node    SimpleAggregateFunction(max, String),
    from_us SimpleAggregateFunction(min, Int64),
    to_us   SimpleAggregateFunction(max, Int64), -- 0: still open
    reason  SimpleAggregateFunction(max, String),
    legs    SimpleAggregateFunction(groupUniqArrayArray, Array(String))
) ENGINE = {{engine "AggregatingMergeTree" "gap" ""}}
ORDER BY id
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- Payloads of the stream that are no entries.
CREATE TABLE IF NOT EXISTS {{db}}.quarantine {{on}} (
    id      FixedString(32),                     -- SHA-256 of the payload
    time_us SimpleAggregateFunction(min, Int64) DEFAULT toUnixTimestamp64Micro(now64(6)), -- when it was first met
    reason  SimpleAggregateFunction(min, String),
    payload SimpleAggregateFunction(any, String)
) ENGINE = {{engine "AggregatingMergeTree" "quarantine" ""}}
ORDER BY id
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;
