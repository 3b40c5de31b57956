package cdrpipe

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"github.com/pressly/goose/v3"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

//go:embed migrations/sqlite/*.sql
var migrations embed.FS

// SQLite is a Warehouse in one file. What Insert returned for survives a
// crash of the machine.
type SQLite struct {
	write *sql.DB // one connection
	read  *sql.DB
}

var _ Warehouse = (*SQLite)(nil)

const readers = 4 // connections that answer questions

// OpenSQLite opens or makes the file and brings its tables up to date. The
// error is bulkhead.Unavailable if the file cannot be used.
func OpenSQLite(ctx context.Context, path string) (*SQLite, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open call records %s: %w: %w", path, bulkhead.Unavailable, err)
	}
	s := &SQLite{}
	// FULL: in WAL mode NORMAL may lose the last commits in a power cut, and
	// the stream forgets what was acknowledged.
	if s.write, err = open(abs, "journal_mode(WAL)", "synchronous(FULL)"); err == nil {
		s.write.SetMaxOpenConns(1)
		err = migrate(ctx, s.write)
	}
	if err == nil {
		s.read, err = open(abs, "query_only(1)")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open call records %s: %w: %w", path, bulkhead.Unavailable, err), s.Close())
	}
	s.read.SetMaxOpenConns(readers)
	return s, nil
}

func open(path string, pragmas ...string) (*sql.DB, error) {
	q := url.Values{"_txlock": {"immediate"}, "_pragma": append([]string{"busy_timeout(5000)"}, pragmas...)}
	return sql.Open("sqlite", (&url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}).String())
}

func migrate(ctx context.Context, db *sql.DB) error {
	sub, err := fs.Sub(migrations, "migrations/sqlite")
	if err != nil {
		return fmt.Errorf("find migrations: %w", err)
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, db, sub, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return fmt.Errorf("read migrations: %w", err)
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("migrate tables: %w", err)
	}
	return nil
}

// Close releases the file.
func (s *SQLite) Close() error {
	var errs []error
	for _, db := range []*sql.DB{s.read, s.write} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	return errors.Join(errs...)
}

// columns of the table cdr in the order of args and scan, without id.
const columns = `time_us, schema, kind, source, sources, prov, cell, node, sbc, pool, tenant, revision, leg, call, sip_call_id,
	direction, caller, callee, start_us, ring_us, answer_us, end_us, billed_ms, sip_code, q850, cause, codec, hangup_by,
	rtp_in, rtp_out, rtp_lost, jitter_ms, mos, clock_offset_ns, attrs, gap, seq`

func args(r *Row, seq int64) ([]any, error) {
	attrs, err := texts(r.Attrs)
	if err != nil {
		return nil, err
	}
	prov, err := texts(provTexts(&r.Record))
	if err != nil {
		return nil, err
	}
	return []any{
		r.ID.String(), micros(r.Time()), r.Schema, string(r.Kind), string(r.Source), joinSources(r.Sources), prov, string(r.Cell), string(r.Node), string(r.SBC),
		string(r.Pool), string(r.Tenant), int64(r.Revision), r.Leg, r.Call, r.SIPCallID,
		string(r.Direction), r.Caller, r.Callee, null(r.Start), null(r.Ring), null(r.Answer), null(r.End), r.BilledMS,
		r.SIPCode, r.Q850, r.Cause, r.Codec, r.HangupBy,
		r.RTPIn, r.RTPOut, r.RTPLost, r.JitterMS, r.MOS, int64(r.ClockOffset), attrs, r.Gap, seq,
	}, nil
}

// texts is a map as a column's value; empty if there is nothing in it.
func texts(m map[string]string) (string, error) {
	if len(m) == 0 {
		return "", nil
	}
	b, err := json.Marshal(m)
	return string(b), err
}

func joinSources(sources []cdr.Source) string {
	parts := make([]string, len(sources))
	for i, s := range sources {
		parts[i] = string(s)
	}
	return strings.Join(parts, ",")
}

func splitSources(s string) (sources []cdr.Source) {
	for part := range strings.SplitSeq(s, ",") {
		if part != "" {
			sources = append(sources, cdr.Source(part))
		}
	}
	return sources
}

// null is the column value of a time that may be unknown.
func null(t time.Time) any {
	if us := micros(t); us != 0 {
		return us
	}
	return nil
}

func scan(scan func(...any) error) (Row, error) {
	r, _, err := scanSeq(scan)
	return r, err
}

func scanSeq(scan func(...any) error) (Row, int64, error) {
	var (
		r                        Row
		id, sources, prov, attrs string
		provs                    map[string]string
		timeUS, revision, seq    int64
		start, ring, answer, end sql.NullInt64
	)
	err := scan(&id, &timeUS, &r.Schema, &r.Kind, &r.Source, &sources, &prov, &r.Cell, &r.Node, &r.SBC,
		&r.Pool, &r.Tenant, &revision, &r.Leg, &r.Call, &r.SIPCallID,
		&r.Direction, &r.Caller, &r.Callee, &start, &ring, &answer, &end, &r.BilledMS,
		&r.SIPCode, &r.Q850, &r.Cause, &r.Codec, &r.HangupBy,
		&r.RTPIn, &r.RTPOut, &r.RTPLost, &r.JitterMS, &r.MOS, &r.ClockOffset, &attrs, &r.Gap, &seq)
	if err == nil && attrs != "" {
		err = json.Unmarshal([]byte(attrs), &r.Attrs)
	}
	if err == nil && prov != "" {
		err = json.Unmarshal([]byte(prov), &provs)
	}
	if err != nil {
		return Row{}, 0, err
	}
	r.Sources, r.Prov = splitSources(sources), provOf(provs)
	r.Revision = bulkhead.RevisionNumber(revision)
	r.Start, r.Ring = fromMicros(start.Int64), fromMicros(ring.Int64)
	r.Answer, r.End = fromMicros(answer.Int64), fromMicros(end.Int64)
	return r, seq, r.ID.UnmarshalText([]byte(id))
}

// Insert implements Warehouse; on an error nothing is stored.
func (s *SQLite) Insert(ctx context.Context, entries []cdr.Entry) error {
	records, gaps := merged(entries)
	err := s.inTx(ctx, func(tx *sql.Tx) error {
		if err := putRecords(ctx, tx, records); err != nil {
			return err
		}
		if err := putRaw(ctx, tx, entries); err != nil {
			return err
		}
		return putGaps(ctx, tx, gaps)
	})
	if err != nil {
		return fmt.Errorf("store %d call records: %w", len(entries), err)
	}
	return nil
}

func (s *SQLite) inTx(ctx context.Context, do func(*sql.Tx) error) error {
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := do(tx); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}

// putRecords writes what is new. A row that a report does not change keeps its
// place in the order of storing.
func putRecords(ctx context.Context, tx *sql.Tx, rows []Row) (err error) {
	if len(rows) == 0 {
		return nil
	}
	get, err := tx.PrepareContext(ctx, "SELECT id, "+columns+" FROM cdr WHERE id = ?")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, get.Close()) }()
	values := strings.Repeat(", ?", strings.Count(columns, ",")+1)
	put, err := tx.PrepareContext(ctx, "INSERT OR REPLACE INTO cdr (id, "+columns+") VALUES (?"+values+")")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, put.Close()) }()
	seq, err := nextSeq(ctx, tx)
	if err != nil {
		return err
	}
	sums := sums{}
	for i := range rows {
		r := &rows[i]
		old, err := scan(get.QueryRowContext(ctx, r.ID.String()).Scan)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if err == nil {
			if *r = newRow(cdr.Merge(old.Record, r.Record)); reflect.DeepEqual(old, *r) {
				continue
			}
			sums.add(&old.Record, -1)
		}
		sums.add(&r.Record, 1)
		values, err := args(r, seq)
		if err != nil {
			return err
		}
		if _, err := put.ExecContext(ctx, values...); err != nil {
			return err
		}
	}
	return sums.put(ctx, tx)
}

// nextSeq returns a number above all that were given, whatever the clock does.
// The clock is for the case that the newest rows have been deleted.
func nextSeq(ctx context.Context, tx *sql.Tx) (int64, error) {
	var last int64
	err := tx.QueryRowContext(ctx, "SELECT coalesce(max(seq), 0) FROM cdr").Scan(&last)
	return max(last+1, time.Now().UnixMicro()), err
}

const gapColumns = "id, cell, node, from_us, to_us, reason, legs"

func putGaps(ctx context.Context, tx *sql.Tx, gaps []cdr.Gap) error {
	for _, g := range gaps {
		old, err := scanGap(tx.QueryRowContext(ctx, "SELECT "+gapColumns+" FROM gap WHERE id = ?", g.ID).Scan)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if err == nil {
			g = MergeGap(old, g)
		}
		legs, err := json.Marshal(g.Legs)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, "INSERT OR REPLACE INTO gap ("+gapColumns+") VALUES (?, ?, ?, ?, ?, ?, ?)",
			g.ID, string(g.Cell), string(g.Node), micros(g.From), null(g.To), g.Reason, string(legs))
		if err != nil {
			return err
		}
	}
	return nil
}

func scanGap(scan func(...any) error) (cdr.Gap, error) {
	var (
		g    cdr.Gap
		from int64
		to   sql.NullInt64
		legs string
	)
	if err := scan(&g.ID, &g.Cell, &g.Node, &from, &to, &g.Reason, &legs); err != nil {
		return cdr.Gap{}, err
	}
	g.From, g.To = fromMicros(from), fromMicros(to.Int64)
	return g, json.Unmarshal([]byte(legs), &g.Legs)
}

// Quarantine implements Warehouse.
func (s *SQLite) Quarantine(ctx context.Context, payloads []Undecodable) error {
	err := s.inTx(ctx, func(tx *sql.Tx) error {
		for _, u := range payloads {
			sum := sha256.Sum256(u.Payload)
			_, err := tx.ExecContext(ctx, "INSERT INTO quarantine (id, time_us, reason, payload) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
				hex.EncodeToString(sum[:]), time.Now().UnixMicro(), u.Reason, append([]byte{}, u.Payload...)) // never NULL
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("store %d undecodable payloads: %w", len(payloads), err)
	}
	return nil
}
