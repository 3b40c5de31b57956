package kamailio

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"

	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

// side is one of the two tables.
type side string

const (
	sideA side = "a"
	sideB side = "b"
)

func (s side) other() side {
	if s == sideB {
		return sideA
	}
	return sideB
}

func (s side) table() string { return "bulkhead_" + string(s) }

// openSQLite opens a file in WAL mode, in which Kamailio, whose driver does
// not wait for locks, can always read.
func openSQLite(path string) (*sql.DB, error) {
	db, err := sql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(5000)&_pragma=journal_mode(wal)&_pragma=synchronous(full)&_txlock=immediate")
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	db.SetMaxOpenConns(1)
	return db, nil
}

func create(path string, statements ...string) error {
	db, err := openSQLite(path)
	if err != nil {
		return err
	}
	for _, s := range statements {
		if _, err := db.Exec(s); err != nil {
			return errors.Join(fmt.Errorf("create %s: %w", path, err), db.Close())
		}
	}
	return db.Close()
}

// createTables makes the columns that the htable module reads (its README,
// "Loading from database"). The key is the primary key because the module
// reads in its order.
func createTables(path string) error {
	const columns = ` (key_name TEXT PRIMARY KEY NOT NULL, key_type INTEGER NOT NULL DEFAULT 0,
		value_type INTEGER NOT NULL DEFAULT 0, key_value TEXT NOT NULL, expires INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID`
	return create(path,
		`CREATE TABLE IF NOT EXISTS bulkhead_a`+columns,
		`CREATE TABLE IF NOT EXISTS bulkhead_b`+columns,
		`CREATE TABLE IF NOT EXISTS bulkhead_meta`+columns,
		// A Kamailio that starts on a file of before must not take the other table.
		`INSERT OR REPLACE INTO bulkhead_meta (key_name, key_value) SELECT '`+liveKey+`', key_value = 'b' FROM bulkhead_meta WHERE key_name = '`+oldLiveKey+`'`,
		`DELETE FROM bulkhead_meta WHERE key_name = '`+oldLiveKey+`'`,
		`INSERT OR IGNORE INTO bulkhead_meta (key_name, key_value) VALUES
			('`+liveKey+`', '0'), ('rev_a', '0'), ('count_a', '0'), ('rev_b', '0'), ('count_b', '0')`,
	)
}

// createLocation makes the table "location" in version 9, as usrloc of
// Kamailio 5.6 wants it with expires_type 1 (times are Unix seconds).
func createLocation(path string) error {
	return create(path,
		`CREATE TABLE IF NOT EXISTS version (id INTEGER PRIMARY KEY NOT NULL, table_name VARCHAR(32) NOT NULL UNIQUE, table_version INTEGER NOT NULL DEFAULT 0)`,
		`INSERT OR IGNORE INTO version (table_name, table_version) VALUES ('version', 1), ('location', 9)`,
		`CREATE TABLE IF NOT EXISTS location (
			id INTEGER PRIMARY KEY NOT NULL, ruid VARCHAR(64) NOT NULL DEFAULT '' UNIQUE,
			username VARCHAR(64) NOT NULL DEFAULT '', domain VARCHAR(64) DEFAULT NULL,
			contact VARCHAR(512) NOT NULL DEFAULT '', received VARCHAR(128) DEFAULT NULL, path VARCHAR(512) DEFAULT NULL,
			expires INTEGER NOT NULL DEFAULT 0, q REAL NOT NULL DEFAULT 1.0,
			callid VARCHAR(255) NOT NULL DEFAULT '', cseq INTEGER NOT NULL DEFAULT 1, last_modified INTEGER NOT NULL DEFAULT 0,
			flags INTEGER NOT NULL DEFAULT 0, cflags INTEGER NOT NULL DEFAULT 0, user_agent VARCHAR(255) NOT NULL DEFAULT '',
			socket VARCHAR(64) DEFAULT NULL, methods INTEGER DEFAULT NULL, instance VARCHAR(255) DEFAULT NULL,
			reg_id INTEGER NOT NULL DEFAULT 0, server_id INTEGER NOT NULL DEFAULT 0, connection_id INTEGER NOT NULL DEFAULT 0,
			keepalive INTEGER NOT NULL DEFAULT 0, partition INTEGER NOT NULL DEFAULT 0)`,
		`CREATE INDEX IF NOT EXISTS location_contact ON location (username, domain, contact)`,
		`CREATE INDEX IF NOT EXISTS location_expires ON location (expires)`,
	)
}

// liveKey is the key of bulkhead_meta that says which side is looked at. Its
// value is a number: Kamailio asks for it at every request, and a comparison of
// text would cost as much as the look-up. oldLiveKey was text, a or b.
const (
	liveKey    = "b_live"
	oldLiveKey = "live"
)

func liveValue(s side) string {
	if s == sideB {
		return "1"
	}
	return "0"
}

// meta is what bulkhead_meta says, in the file or in Kamailio's memory.
type meta struct {
	live  side
	rev   map[side]bulkhead.RevisionNumber
	count map[side]int
}

// parseMeta reads the rows of bulkhead_meta. What is missing is side a and
// zero, as in a new file and as kamailio.cfg takes it. Where the older key stands
// instead it is errOldFiles.
func parseMeta(get func(key string) (string, error)) (meta, error) {
	m := meta{live: sideA, rev: map[side]bulkhead.RevisionNumber{}, count: map[side]int{}}
	live, err := get(liveKey)
	if err != nil {
		return m, err
	}
	if live == "" {
		if old, err := get(oldLiveKey); err != nil {
			return m, err
		} else if old != "" {
			return m, errOldFiles
		}
	}
	if live == liveValue(sideB) {
		m.live = sideB
	}
	for _, s := range []side{sideA, sideB} {
		rev, err := get("rev_" + string(s))
		if err != nil {
			return m, err
		}
		count, err := get("count_" + string(s))
		if err != nil {
			return m, err
		}
		n, _ := strconv.ParseUint(rev, 10, 64) // not a number: no revision
		m.rev[s] = bulkhead.RevisionNumber(n)
		m.count[s], _ = strconv.Atoi(count)
	}
	return m, nil
}

// tableFile is the file that Kamailio starts from.
type tableFile struct{ db *sql.DB }

func (f tableFile) meta(ctx context.Context) (meta, error) {
	return parseMeta(func(key string) (string, error) {
		var v string
		err := f.db.QueryRowContext(ctx, `SELECT key_value FROM bulkhead_meta WHERE key_name = ?`, key).Scan(&v)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return "", fmt.Errorf("read bulkhead_meta of the table file: %w", err)
		}
		return v, nil
	})
}

// op is one row to put or to delete.
type op struct {
	route.Row
	delete bool
}

// diff returns what leads from the rows of a side to want, both in the order
// of their keys.
func (f tableFile) diff(ctx context.Context, s side, want []route.Row) ([]op, error) {
	rows, err := f.db.QueryContext(ctx, `SELECT key_name, key_value FROM `+s.table()+` ORDER BY key_name`)
	if err != nil {
		return nil, fmt.Errorf("read %s of the table file: %w", s.table(), err)
	}
	defer rows.Close() //nolint:errcheck // read only
	var ops []op
	i := 0
	for rows.Next() {
		var have route.Row
		if err := rows.Scan(&have.Key, &have.Value); err != nil {
			return nil, fmt.Errorf("read %s of the table file: %w", s.table(), err)
		}
		for ; i < len(want) && want[i].Key < have.Key; i++ {
			ops = append(ops, op{Row: want[i]})
		}
		switch {
		case i == len(want) || want[i].Key > have.Key:
			ops = append(ops, op{Row: have, delete: true})
			continue
		case want[i].Value != have.Value:
			ops = append(ops, op{Row: want[i]})
		}
		i++
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read %s of the table file: %w", s.table(), err)
	}
	for ; i < len(want); i++ {
		ops = append(ops, op{Row: want[i]})
	}
	return ops, nil
}

// update brings a side to a revision, whole or not at all, and makes it the
// one to start from if live is set.
func (f tableFile) update(ctx context.Context, s side, ops []op, rev bulkhead.RevisionNumber, count int, live bool) error {
	tx, err := f.db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("write %s of the table file: %w", s.table(), err)
	}
	defer tx.Rollback() //nolint:errcheck // no effect after Commit
	if err := writeOps(ctx, tx, s, ops); err != nil {
		return fmt.Errorf("write %s of the table file: %w", s.table(), err)
	}
	values := map[string]string{
		"rev_" + string(s):   strconv.FormatUint(uint64(rev), 10),
		"count_" + string(s): strconv.Itoa(count),
	}
	if live {
		values[liveKey] = liveValue(s)
	}
	for k, v := range values {
		if _, err := tx.ExecContext(ctx, `INSERT INTO bulkhead_meta (key_name, key_value) VALUES (?, ?)
			ON CONFLICT (key_name) DO UPDATE SET key_value = excluded.key_value`, k, v); err != nil {
			return fmt.Errorf("write bulkhead_meta of the table file: %w", err)
		}
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("write %s of the table file: %w", s.table(), err)
	}
	return nil
}

// batchRows is how many rows one statement writes: a hundred are four times
// as fast as one by one, more are not faster.
const batchRows = 100

func writeOps(ctx context.Context, tx *sql.Tx, s side, ops []op) error {
	del, err := tx.PrepareContext(ctx, `DELETE FROM `+s.table()+` WHERE key_name = ?`)
	if err != nil {
		return err
	}
	defer del.Close() //nolint:errcheck // ends with the transaction
	insert := func(n int) string {
		return `INSERT INTO ` + s.table() + ` (key_name, key_value) VALUES ` + strings.TrimSuffix(strings.Repeat("(?,?),", n), ",") +
			` ON CONFLICT (key_name) DO UPDATE SET key_value = excluded.key_value`
	}
	full, err := tx.PrepareContext(ctx, insert(batchRows))
	if err != nil {
		return err
	}
	defer full.Close() //nolint:errcheck // ends with the transaction
	for batch := range puts(ops) {
		if len(batch) == 2*batchRows {
			_, err = full.ExecContext(ctx, batch...)
		} else {
			_, err = tx.ExecContext(ctx, insert(len(batch)/2), batch...)
		}
		if err != nil {
			return err
		}
	}
	for _, o := range ops {
		if o.delete {
			if _, err := del.ExecContext(ctx, o.Key); err != nil {
				return err
			}
		}
	}
	return nil
}

// puts yields the keys and values of the rows to put, up to batchRows at a time.
func puts(ops []op) iter.Seq[[]any] {
	return func(yield func([]any) bool) {
		batch := make([]any, 0, 2*batchRows)
		for _, o := range ops {
			if o.delete {
				continue
			}
			batch = append(batch, o.Key, o.Value)
			if len(batch) == 2*batchRows {
				if !yield(batch) {
					return
				}
				batch = batch[:0]
			}
		}
		if len(batch) > 0 {
			yield(batch)
		}
	}
}
