-- +goose Up
-- Who may ask. The secret itself is nowhere.
CREATE TABLE token (
    id         TEXT PRIMARY KEY,
    hash       BLOB NOT NULL,    -- SHA-256 of the secret
    scope      TEXT NOT NULL,
    tenant     TEXT NOT NULL,
    node       TEXT NOT NULL,
    cell       TEXT NOT NULL,
    note       TEXT NOT NULL,
    created_us INTEGER NOT NULL, -- microseconds since 1970, UTC; 0: never
    used_us    INTEGER NOT NULL,
    revoked_us INTEGER NOT NULL
) STRICT;

-- What was tried to be written, and by whom.
CREATE TABLE audit (
    number   INTEGER PRIMARY KEY AUTOINCREMENT,
    time_us  INTEGER NOT NULL,
    token    TEXT NOT NULL,
    method   TEXT NOT NULL,
    path     TEXT NOT NULL,
    status   INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    detail   TEXT NOT NULL
) STRICT;

-- +goose Down
DROP TABLE audit;
DROP TABLE token;
