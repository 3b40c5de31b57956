package registry

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/bulkhead-voip/bulkhead"
)

// Commit implements Store. Its cost grows with the size of the change and, by
// the validation of the whole state, slowly with the size of the state.
func (s *SQLite) Commit(ctx context.Context, base bulkhead.RevisionNumber, r bulkhead.Revision) (bulkhead.Revision, error) {
	if err := checkRevision(&r); err != nil {
		return bulkhead.Revision{}, err
	}
	text, err := json.Marshal(&r.Change)
	if err != nil {
		return bulkhead.Revision{}, fmt.Errorf("encode the change: %w: %w", bulkhead.Invalid, err)
	}
	// What is validated and kept in memory is what was written, and shares
	// nothing with the caller's change.
	var change bulkhead.Change
	if err := decode(text, &change); err != nil {
		return bulkhead.Revision{}, fmt.Errorf("encode the change: %w: %w", bulkhead.Invalid, err)
	}
	next, err := s.commit(ctx, base, &r, &change, text)
	if err != nil {
		return bulkhead.Revision{}, err
	}
	s.remember(next)
	s.wakeAll()
	return r, nil
}

// commit checks and writes in one transaction that holds the write lock from
// its beginning, so that no other process can commit in between.
func (s *SQLite) commit(ctx context.Context, base bulkhead.RevisionNumber, r *bulkhead.Revision, change *bulkhead.Change, text []byte) (next bulkhead.State, err error) {
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return next, s.failed(ctx, "begin a commit", err)
	}
	defer func() {
		if err != nil {
			_ = tx.Rollback() // the first error tells more
		}
	}()
	head, err := headNumber(ctx, tx)
	if err != nil {
		return next, s.failed(ctx, "begin a commit", err)
	}
	if head != base {
		return next, staleBase(base, head)
	}
	state, err := catchUp(ctx, tx, s.newest())
	if err != nil {
		return next, s.failed(ctx, "begin a commit", err)
	}
	s.remember(state)
	next = state.Apply(change)
	if err := checkState(next); err != nil {
		return next, err
	}
	r.Number, r.Parent = next.Revision, base
	r.Time = time.Now().UTC().Truncate(time.Microsecond)
	if err := writeRevision(ctx, tx, r, text); err != nil {
		return next, s.failed(ctx, "write the revision", err)
	}
	if err := writeObjects(ctx, tx, r.Number, change); err != nil {
		return next, s.failed(ctx, "write the objects", err)
	}
	if err := tx.Commit(); err != nil {
		return next, s.failed(ctx, "commit", err)
	}
	return next, nil
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
