package registry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/bulkhead-voip/bulkhead"
)

// querier is a database or a transaction.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// rows reads a ledger's source from a database or a transaction. Without a
// transaction, objects must not be asked for.
type rows struct{ q querier }

func (s rows) head(ctx context.Context) (mark, error) {
	var m mark
	err := s.q.QueryRowContext(ctx, `SELECT coalesce(max(number), 0) FROM revision`).Scan(&m.number)
	return m, err
}

func (s rows) origin(ctx context.Context) (n bulkhead.RevisionNumber, err error) {
	err = s.q.QueryRowContext(ctx, `SELECT coalesce(min(parent), 0) FROM revision`).Scan(&n)
	return n, err
}

func (s rows) revisions(ctx context.Context, from, to bulkhead.RevisionNumber, limit int) (out []stored, err error) {
	list, err := s.q.QueryContext(ctx, `SELECT number, parent, time_us, author, message, change FROM revision
		WHERE number BETWEEN ? AND ? ORDER BY number LIMIT ?`, from, to, max(limit, 0))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, list.Close()) }()
	size := 0
	for size < watchBytes && list.Next() {
		var r stored
		var micros int64
		var change []byte
		if err := list.Scan(&r.Number, &r.Parent, &micros, &r.Author, &r.Message, &change); err != nil {
			return nil, err
		}
		r.Time = time.UnixMicro(micros).UTC()
		if err := decode(change, &r.Change); err != nil {
			return nil, fmt.Errorf("read revision %d: %w", r.Number, err)
		}
		size += len(change)
		out = append(out, r)
	}
	return out, list.Err()
}

func (s rows) objects(ctx context.Context) (p position, err error) {
	head, err := s.head(ctx)
	if err != nil {
		return p, err
	}
	list, err := s.q.QueryContext(ctx, `SELECT kind, id, json FROM object`)
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, list.Close()) }()
	var c bulkhead.Change
	for list.Next() {
		var kind, id string
		var text []byte
		if err := list.Scan(&kind, &id, &text); err != nil {
			return p, err
		}
		if err := addObject(&c, kind, id, text); err != nil {
			return p, fmt.Errorf("read %s %q: %w", kind, id, err)
		}
	}
	if err := list.Err(); err != nil {
		return p, err
	}
	p.state = p.state.Apply(&c)
	p.state.Revision = head.number
	return p, nil
}
