package registry

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/pressly/goose/v3"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/bulkhead-voip/bulkhead"
)

//go:embed migrations/*.sql
var migrations embed.FS

const (
	// pollInterval is how often a waiting Watch looks for a commit of another
	// process; those of its own handle wake it at once.
	pollInterval = 50 * time.Millisecond
	// lockWait is how long one process waits for another's commit.
	lockWait = 5 * time.Second
	// openWait bounds the wait for another process that is making the tables.
	openWait = 10 * time.Second
)

// SQLite is a Store in one file. Several processes of one host may open the
// same file; a file on a network file system may not be shared.
type SQLite struct {
	path  string
	write *sql.DB // one connection, whose transactions take the write lock at once
	read  *sql.DB

	ledger *ledger
	keys   *Tokens
}

// OpenSQLite opens the store in the file at path, or makes it, readable by
// its owner only: it holds the users' digest secrets. The caller closes it.
// It returns bulkhead.Invalid when the file is no store that this version can
// read, and bulkhead.Unavailable when it cannot be opened.
func OpenSQLite(ctx context.Context, path string) (*SQLite, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open the registry %s: %w", path, err)
	}
	// SQLite would make the file readable by everybody; its WAL takes over
	// the mode of the file.
	f, err := os.OpenFile(abs, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the registry: %w: %w", bulkhead.Unavailable, err)
	}
	if err := f.Close(); err != nil {
		return nil, fmt.Errorf("open the registry: %w: %w", bulkhead.Unavailable, err)
	}
	s := &SQLite{path: path, ledger: newLedger()}
	s.keys = newTokens(s)
	if s.write, err = sql.Open("sqlite", dsn(abs, "immediate")); err != nil {
		return nil, s.failed(ctx, "open", err)
	}
	s.write.SetMaxOpenConns(1)
	if s.read, err = sql.Open("sqlite", dsn(abs, "deferred")); err != nil {
		return nil, errors.Join(s.failed(ctx, "open", err), s.write.Close())
	}
	s.read.SetMaxOpenConns(4)
	if err := s.migrate(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if _, err := s.Head(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// dsn names the file as a URI, so that no character of the path is taken for
// an option. WAL lets readers go on during a commit; FULL makes a commit
// durable before it is acknowledged.
func dsn(abs, txlock string) string {
	q := url.Values{"_txlock": {txlock}, "_pragma": {
		fmt.Sprintf("busy_timeout(%d)", lockWait.Milliseconds()),
		"journal_mode(WAL)",
		"synchronous(FULL)",
	}}
	return (&url.URL{Scheme: "file", Path: abs, RawQuery: q.Encode()}).String()
}

// Close ends the handle. Calls that wait return bulkhead.Unavailable.
func (s *SQLite) Close() error {
	return errors.Join(s.read.Close(), s.write.Close())
}

// migrate makes or updates the tables. Of two processes that do so at once
// one fails, finds on its next try that it is done, and goes on.
func (s *SQLite) migrate(ctx context.Context) error {
	dir, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return fmt.Errorf("read the registry's migrations: %w", err)
	}
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 20*time.Millisecond, 500*time.Millisecond
	_, err = backoff.Retry(ctx, func() (struct{}, error) {
		return struct{}{}, s.migrateOnce(ctx, dir)
	}, backoff.WithBackOff(pause), backoff.WithMaxElapsedTime(openWait))
	if errors.Is(err, bulkhead.Invalid) {
		return err
	}
	return s.failed(ctx, "make the tables", err)
}

// codeNotADB is SQLITE_NOTADB, "file is not a database" (sqlite.org/rescode.html).
const codeNotADB = 26

func (s *SQLite) migrateOnce(ctx context.Context, dir fs.FS) error {
	p, err := goose.NewProvider(goose.DialectSQLite3, s.write, dir, goose.WithDisableGlobalRegistry(true), goose.WithSlog(slog.New(slog.DiscardHandler)))
	if err != nil {
		return backoff.Permanent(err)
	}
	current, target, err := p.GetVersions(ctx)
	var coded interface{ Code() int }
	if errors.As(err, &coded) && coded.Code()&0xff == codeNotADB {
		return backoff.Permanent(fmt.Errorf("open the registry %s: %w: the file is not a SQLite database: name another one", s.path, bulkhead.Invalid))
	}
	if err != nil {
		return err
	}
	if current > target {
		return backoff.Permanent(fmt.Errorf("open the registry %s: %w: its tables have version %d and this bulkhead knows up to %d: use a newer bulkhead", s.path, bulkhead.Invalid, current, target))
	}
	_, err = p.Up(ctx)
	return err
}

// failed turns a database error into one that says what was tried.
func (s *SQLite) failed(ctx context.Context, doing string, err error) error {
	return storeFailed(ctx, doing, "the registry "+s.path, err)
}

// Head implements Store.
func (s *SQLite) Head(ctx context.Context) (state bulkhead.State, err error) {
	err = s.reading(ctx, func(tx *sql.Tx) (err error) {
		state, err = s.ledger.head(ctx, rows{tx})
		return err
	})
	return state, s.failed(ctx, "read the head", err)
}

// Watch implements Store.
func (s *SQLite) Watch(ctx context.Context, after bulkhead.RevisionNumber) ([]bulkhead.Revision, error) {
	revisions, err := s.ledger.watch(ctx, rows{s.read}, after, pollInterval)
	return revisions, s.failed(ctx, "watch", err)
}

// Log implements History.
func (s *SQLite) Log(ctx context.Context, from bulkhead.RevisionNumber, limit int) ([]bulkhead.Revision, error) {
	revisions, err := readLog(ctx, rows{s.read}, from, limit)
	return revisions, s.failed(ctx, "read revisions", err)
}

// State implements History.
func (s *SQLite) State(ctx context.Context, number bulkhead.RevisionNumber) (bulkhead.State, error) {
	state, err := replay(ctx, rows{s.read}, number)
	return state, s.failed(ctx, "replay revisions", err)
}

// reading runs f in one transaction, which sees one state of the file.
func (s *SQLite) reading(ctx context.Context, f func(*sql.Tx) error) error {
	tx, err := s.read.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // it has written nothing
	return f(tx)
}
