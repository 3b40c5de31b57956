package cdrpipe

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/bulkhead-voip/bulkhead/cdr"
)

const (
	sqliteRawAge   = 7 * 24 * time.Hour
	sqliteRawPurge = 1000 // old events deleted with one batch, at most: no batch waits for many
)

// putRaw keeps the raw events of a batch, and lets go of some that are old.
func putRaw(ctx context.Context, tx *sql.Tx, entries []cdr.Entry) (err error) {
	now := time.Now()
	put, err := tx.PrepareContext(ctx, "INSERT INTO raw (id, hash, stored_us, payload) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, put.Close()) }()
	for _, e := range entries {
		if e.Record == nil || len(e.Raw) == 0 {
			continue
		}
		sum := sha256.Sum256(e.Raw)
		if _, err := put.ExecContext(ctx, e.Record.ID.String(), hex.EncodeToString(sum[:]), now.UnixMicro(), e.Raw); err != nil {
			return err
		}
	}
	_, err = tx.ExecContext(ctx, "DELETE FROM raw WHERE rowid IN (SELECT rowid FROM raw WHERE stored_us < ? ORDER BY stored_us LIMIT ?)",
		now.Add(-sqliteRawAge).UnixMicro(), sqliteRawPurge)
	return err
}

// Raw implements Warehouse. Raw events are kept for 7 days.
func (s *SQLite) Raw(ctx context.Context, id cdr.ID) ([][]byte, error) {
	rows, err := s.read.QueryContext(ctx, "SELECT payload FROM raw WHERE id = ? ORDER BY stored_us, hash", id.String())
	if err != nil {
		return nil, fmt.Errorf("read raw events: %w", err)
	}
	out, err := collect(rows, func(scan func(...any) error) (b []byte, err error) {
		err = scan(&b)
		return b, err
	})
	if err != nil {
		return nil, fmt.Errorf("read raw events: %w", err)
	}
	return out, nil
}
