-- +goose Up
-- Every revision that ever was, in the order in which they were made.
CREATE TABLE revision (
    number  INTEGER PRIMARY KEY CHECK (number = parent + 1),
    parent  INTEGER NOT NULL UNIQUE,
    time_us INTEGER NOT NULL, -- microseconds since 1970, UTC
    author  TEXT NOT NULL,
    message TEXT NOT NULL,
    change  TEXT NOT NULL     -- JSON of bulkhead.Change
) STRICT;

-- The objects of the newest revision, so that a start need not replay them all.
CREATE TABLE object (
    kind     TEXT NOT NULL,    -- cell, pool, node, sbc or tenant
    id       TEXT NOT NULL,
    revision INTEGER NOT NULL, -- the revision that put it
    json     TEXT NOT NULL,
    PRIMARY KEY (kind, id)
) STRICT;

-- +goose Down
DROP TABLE object;
DROP TABLE revision;
