package registry

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"

	"github.com/bulkhead-voip/bulkhead"
)

// Commit implements Store.
func (s *SQLite) Commit(ctx context.Context, base bulkhead.RevisionNumber, r bulkhead.Revision) (bulkhead.Revision, error) {
	return s.commitAfter(ctx, base, base, r)
}

func (s *SQLite) commitAfter(ctx context.Context, base, parent bulkhead.RevisionNumber, r bulkhead.Revision) (bulkhead.Revision, error) {
	text, change, err := checkRevision(&r)
	if err != nil {
		return bulkhead.Revision{}, err
	}
	if err := s.ledger.begin(ctx); err != nil {
		return bulkhead.Revision{}, s.failed(ctx, "begin a commit", err)
	}
	defer s.ledger.done()
	r.Number, r.Parent = parent+1, parent
	if err := s.commit(ctx, base, &r, change, text); err != nil {
		return bulkhead.Revision{}, s.failed(ctx, "commit", err)
	}
	s.ledger.committed(&r, change)
	return r, nil
}

// commit checks and writes in one transaction that holds the write lock from
// its beginning, so that no other process can commit in between.
func (s *SQLite) commit(ctx context.Context, base bulkhead.RevisionNumber, r *bulkhead.Revision, change *bulkhead.Change, text []byte) (err error) {
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = tx.Rollback() // the first error tells more
		}
	}()
	if _, err := s.ledger.prepare(ctx, rows{tx}, base, change); err != nil {
		return err
	}
	r.Time = now()
	if err := writeRevision(ctx, tx, r, text); err != nil {
		return err
	}
	if err := writeObjects(ctx, tx, r.Number, change); err != nil {
		return err
	}
	tokens, err := s.keys.ofTenants(ctx, change.Delete.Tenants)
	if err != nil {
		return err
	}
	for _, id := range tokens {
		if _, err := tx.ExecContext(ctx, `UPDATE token SET revoked_us = ? WHERE id = ? AND revoked_us = 0`, micros(r.Time), id); err != nil {
			return err
		}
	}
	return tx.Commit()
}

func writeRevision(ctx context.Context, tx *sql.Tx, r *bulkhead.Revision, change []byte) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO revision (number, parent, time_us, author, message, change) VALUES (?, ?, ?, ?, ?, ?)`,
		r.Number, r.Parent, r.Time.UnixMicro(), r.Author, r.Message, string(change))
	return err
}

// writeObjects does to the object table what State.Apply does to a state.
func writeObjects(ctx context.Context, tx *sql.Tx, number bulkhead.RevisionNumber, c *bulkhead.Change) error {
	put, err := tx.PrepareContext(ctx, `INSERT INTO object (kind, id, revision, json) VALUES (?, ?, ?, ?)
		ON CONFLICT (kind, id) DO UPDATE SET revision = excluded.revision, json = excluded.json`)
	if err != nil {
		return err
	}
	del, err := tx.PrepareContext(ctx, `DELETE FROM object WHERE kind = ? AND id = ?`)
	if err != nil {
		return errors.Join(err, put.Close())
	}
	w := writer{put: put, del: del, number: number}
	err = errors.Join(
		writeKind(ctx, w, "cell", c.Cells, cellID, c.Delete.Cells),
		writeKind(ctx, w, "pool", c.Pools, poolID, c.Delete.Pools),
		writeKind(ctx, w, "node", c.Nodes, nodeID, c.Delete.Nodes),
		writeKind(ctx, w, "sbc", c.SBCs, sbcID, c.Delete.SBCs),
		writeKind(ctx, w, "tenant", c.Tenants, tenantID, c.Delete.Tenants),
	)
	return errors.Join(err, put.Close(), del.Close())
}

type writer struct {
	put, del *sql.Stmt
	number   bulkhead.RevisionNumber
}

func writeKind[K ~string, V any](ctx context.Context, w writer, kind string, put []V, id func(*V) string, del []K) error {
	for i := range put {
		text, err := json.Marshal(&put[i])
		if err != nil {
			return err
		}
		if _, err := w.put.ExecContext(ctx, kind, id(&put[i]), w.number, string(text)); err != nil {
			return err
		}
	}
	for _, k := range del {
		if _, err := w.del.ExecContext(ctx, kind, string(k)); err != nil {
			return err
		}
	}
	return nil
}
