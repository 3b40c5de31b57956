package registry

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/bulkhead-voip/bulkhead"
)

const (
	watchLimit = 256     // revisions that one Watch returns at most
	watchBytes = 8 << 20 // it stops after the one with which their changes pass this size
	logLimit   = 1024
	// replayLimit is how far behind a cached state may be before reading all
	// objects anew is cheaper.
	replayLimit = 128
)

// querier is a database or a transaction.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

func headNumber(ctx context.Context, q querier) (bulkhead.RevisionNumber, error) {
	var n bulkhead.RevisionNumber
	err := q.QueryRowContext(ctx, `SELECT coalesce(max(number), 0) FROM revision`).Scan(&n)
	return n, err
}

// catchUp returns the head state, starting from one that was the head.
func catchUp(ctx context.Context, q querier, from bulkhead.State) (bulkhead.State, error) {
	head, err := headNumber(ctx, q)
	if err != nil {
		return bulkhead.State{}, err
	}
	if head == from.Revision {
		return from, nil
	}
	if from.Revision == 0 || head < from.Revision || head-from.Revision > replayLimit {
		return readObjects(ctx, q, head)
	}
	for from.Revision < head {
		revisions, err := readRevisions(ctx, q, from.Revision+1, head, replayLimit)
		if err != nil {
			return bulkhead.State{}, err
		}
		if len(revisions) == 0 || revisions[0].Parent != from.Revision {
			return readObjects(ctx, q, head)
		}
		for i := range revisions {
			from = from.Apply(&revisions[i].Change)
		}
	}
	return from, nil
}

// readRevisions reads at most limit revisions, from and to included, in order.
func readRevisions(ctx context.Context, q querier, from, to bulkhead.RevisionNumber, limit int) (out []bulkhead.Revision, err error) {
	rows, err := q.QueryContext(ctx, `SELECT number, parent, time_us, author, message, change FROM revision
		WHERE number BETWEEN ? AND ? ORDER BY number LIMIT ?`, from, to, max(limit, 0))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	size := 0
	for size < watchBytes && rows.Next() {
		var r bulkhead.Revision
		var micros int64
		var change []byte
		if err := rows.Scan(&r.Number, &r.Parent, &micros, &r.Author, &r.Message, &change); err != nil {
			return nil, err
		}
		r.Time = time.UnixMicro(micros).UTC()
		if err := decode(change, &r.Change); err != nil {
			return nil, fmt.Errorf("read revision %d: %w", r.Number, err)
		}
		size += len(change)
		out = append(out, r)
	}
	return out, rows.Err()
}

// readObjects reads the state that the object table holds.
func readObjects(ctx context.Context, q querier, head bulkhead.RevisionNumber) (s bulkhead.State, err error) {
	rows, err := q.QueryContext(ctx, `SELECT kind, id, json FROM object`)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	var c bulkhead.Change
	for rows.Next() {
		var kind, id string
		var text []byte
		if err := rows.Scan(&kind, &id, &text); err != nil {
			return s, err
		}
		if err := addObject(&c, kind, id, text); err != nil {
			return s, fmt.Errorf("read %s %q: %w", kind, id, err)
		}
	}
	if err := rows.Err(); err != nil {
		return s, err
	}
	s = s.Apply(&c)
	s.Revision = head
	return s, nil
}

func addObject(c *bulkhead.Change, kind, id string, text []byte) (err error) {
	var got string
	switch kind {
	case "cell":
		got, err = appendObject(&c.Cells, text, cellID)
	case "pool":
		got, err = appendObject(&c.Pools, text, poolID)
	case "node":
		got, err = appendObject(&c.Nodes, text, nodeID)
	case "sbc":
		got, err = appendObject(&c.SBCs, text, sbcID)
	case "tenant":
		got, err = appendObject(&c.Tenants, text, tenantID)
	default:
		return errors.New("the kind is unknown: a newer bulkhead wrote it")
	}
	if err == nil && got != id {
		return fmt.Errorf("the stored object says that it is %q", got)
	}
	return err
}

func appendObject[V any](list *[]V, text []byte, id func(*V) string) (string, error) {
	var v V
	if err := decode(text, &v); err != nil {
		return "", err
	}
	*list = append(*list, v)
	return id(&v), nil
}

func cellID(v *bulkhead.Cell) string     { return string(v.ID) }
func poolID(v *bulkhead.Pool) string     { return string(v.ID) }
func nodeID(v *bulkhead.Node) string     { return string(v.ID) }
func sbcID(v *bulkhead.SBC) string       { return string(v.ID) }
func tenantID(v *bulkhead.Tenant) string { return string(v.ID) }

// decode reads one JSON value and refuses what it does not know: leaving a
// field out that a newer version wrote would lose it with the next commit.
func decode(text []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("decode the stored JSON: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("decode the stored JSON: something follows the value")
	}
	return nil
}
