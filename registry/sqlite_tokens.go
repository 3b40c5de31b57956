package registry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/bulkhead-voip/bulkhead"
)

// Tokens returns the tokens that the file holds.
func (s *SQLite) Tokens() *Tokens { return s.keys }

// Audit returns the audit log that the file holds.
func (s *SQLite) Audit() *Audit { return &Audit{s} }

// micros is a time as it is stored; 0: none.
func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func fromMicros(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}

func noToken(id string) error {
	return fmt.Errorf("token %q: %w", id, bulkhead.NotFound)
}

const tokenColumns = `id, hash, scope, tenant, node, sbc, cell, note, created_us, used_us, revoked_us`

func scanToken(scan func(...any) error) (*tokenRow, error) {
	var t tokenRow
	var created, used, revoked int64
	err := scan(&t.ID, &t.Hash, &t.Scope, &t.Tenant, &t.Node, &t.SBC, &t.Cell, &t.Note, &created, &used, &revoked)
	t.Created, t.LastUsed, t.Revoked = fromMicros(created), fromMicros(used), fromMicros(revoked)
	return &t, err
}

func (s *SQLite) addToken(ctx context.Context, t *tokenRow) error {
	_, err := s.write.ExecContext(ctx, `INSERT INTO token (`+tokenColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		t.ID, t.Hash, string(t.Scope), string(t.Tenant), string(t.Node), string(t.SBC), string(t.Cell), t.Note, micros(t.Created), micros(t.LastUsed), micros(t.Revoked))
	return s.failed(ctx, "store a token", err)
}

func (s *SQLite) token(ctx context.Context, id string) (*tokenRow, error) {
	t, err := scanToken(s.read.QueryRowContext(ctx, `SELECT `+tokenColumns+` FROM token WHERE id = ?`, id).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, noToken(id)
	}
	return t, s.failed(ctx, "read a token", err)
}

func (s *SQLite) tokens(ctx context.Context) (out []tokenRow, err error) {
	list, err := s.read.QueryContext(ctx, `SELECT `+tokenColumns+` FROM token`)
	if err != nil {
		return nil, s.failed(ctx, "read the tokens", err)
	}
	defer func() { err = s.failed(ctx, "read the tokens", errors.Join(err, list.Close())) }()
	for list.Next() {
		t, err := scanToken(list.Scan)
		if err != nil {
			return nil, err
		}
		out = append(out, *t)
	}
	return out, list.Err()
}

// tokensVersion: a new token has the highest rowid, and a revocation the latest time.
func (s *SQLite) tokensVersion(ctx context.Context) (string, error) {
	var v string
	err := s.read.QueryRowContext(ctx, `SELECT count(*) || ' ' || coalesce(max(rowid), 0) || ' ' || coalesce(sum(revoked_us > 0), 0) || ' ' || coalesce(max(revoked_us), 0) FROM token`).Scan(&v)
	return v, s.failed(ctx, "read the tokens", err)
}

func (s *SQLite) revokeToken(ctx context.Context, id string, at time.Time) error {
	done, err := s.write.ExecContext(ctx, `UPDATE token SET revoked_us = CASE revoked_us WHEN 0 THEN ? ELSE revoked_us END WHERE id = ?`, micros(at), id)
	if err != nil {
		return s.failed(ctx, "revoke a token", err)
	}
	if n, err := done.RowsAffected(); err == nil && n == 0 {
		return noToken(id)
	}
	return nil
}

func (s *SQLite) useToken(ctx context.Context, id string, at time.Time) error {
	_, err := s.write.ExecContext(ctx, `UPDATE token SET used_us = ? WHERE id = ? AND used_us <= ?`, micros(at), id, micros(at.Add(-usedEvery)))
	return s.failed(ctx, "write down a token's use", err)
}

func (s *SQLite) dropToken(ctx context.Context, id string) error {
	_, err := s.write.ExecContext(ctx, `DELETE FROM token WHERE id = ?`, id)
	return s.failed(ctx, "drop a token", err)
}

func (s *SQLite) appendAudit(ctx context.Context, e *AuditEntry) error {
	done, err := s.write.ExecContext(ctx, `INSERT INTO audit (time_us, token, method, path, status, revision, detail) VALUES (?, ?, ?, ?, ?, ?, ?)`,
		micros(e.Time), e.Token, e.Method, e.Path, e.Status, e.Revision, e.Detail)
	if err != nil {
		return s.failed(ctx, "write the audit log", err)
	}
	if n, err := done.LastInsertId(); err == nil && n > MaxAudit && n%100 == 0 {
		_, err := s.write.ExecContext(ctx, `DELETE FROM audit WHERE number <= ?`, n-MaxAudit)
		return s.failed(ctx, "shorten the audit log", err)
	}
	return nil
}

func (s *SQLite) audit(ctx context.Context, after int64, limit int) (out []AuditEntry, err error) {
	list, err := s.read.QueryContext(ctx, `SELECT number, time_us, token, method, path, status, revision, detail FROM audit WHERE number > ? ORDER BY number LIMIT ?`, after, limit)
	if err != nil {
		return nil, s.failed(ctx, "read the audit log", err)
	}
	defer func() { err = s.failed(ctx, "read the audit log", errors.Join(err, list.Close())) }()
	for list.Next() {
		var e AuditEntry
		var us int64
		if err := list.Scan(&e.Number, &us, &e.Token, &e.Method, &e.Path, &e.Status, &e.Revision, &e.Detail); err != nil {
			return nil, err
		}
		e.Time = fromMicros(us)
		out = append(out, e)
	}
	return out, list.Err()
}
