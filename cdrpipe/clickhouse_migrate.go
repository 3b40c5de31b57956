package cdrpipe

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"text/template"
	"time"
)

//go:embed migrations/clickhouse/*.sql
var clickHouseMigrations embed.FS

// migration is one file: a number, and statements that may each run again.
type migration struct {
	version    uint32
	statements []string
}

// ClickHouseDDL returns the statements that make the tables, those for a
// cluster if c.Cluster is set.
func ClickHouseDDL(c *ClickHouseConfig) ([]string, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	all, err := c.migrations()
	if err != nil {
		return nil, err
	}
	out := c.prelude()
	for _, m := range all {
		out = append(out, m.statements...)
	}
	return append(out, c.retention()...), nil
}

func (c *ClickHouseConfig) on() string {
	if c.Cluster == "" {
		return ""
	}
	return "ON CLUSTER " + c.Cluster
}

// engine is a table's engine; on a cluster the replicas of a shard agree by
// the path, whose macros the servers fill in.
func (c *ClickHouseConfig) engine(name, table, args string) string {
	if c.Cluster == "" {
		return name + "(" + args + ")"
	}
	if args != "" {
		args = ", " + args
	}
	return fmt.Sprintf("Replicated%s('/clickhouse/tables/{shard}/%s/%s', '{replica}'%s)", name, c.Database, table, args)
}

// prelude makes what the migrations themselves are noted in.
func (c *ClickHouseConfig) prelude() []string {
	return []string{
		fmt.Sprintf("CREATE DATABASE IF NOT EXISTS %s %s", c.Database, c.on()),
		fmt.Sprintf("CREATE TABLE IF NOT EXISTS %s.migration %s (version UInt32, applied DateTime DEFAULT now()) ENGINE = %s ORDER BY version",
			c.Database, c.on(), c.engine("ReplacingMergeTree", "migration", "applied")),
	}
}

// migrations reads the files in order.
func (c *ClickHouseConfig) migrations() ([]migration, error) {
	const dir = "migrations/clickhouse"
	files, err := fs.ReadDir(clickHouseMigrations, dir) // sorted by name
	if err != nil {
		return nil, fmt.Errorf("read migrations: %w", err)
	}
	var out []migration
	for _, f := range files {
		number, _, _ := strings.Cut(f.Name(), "_")
		version, err := strconv.ParseUint(number, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("migration %s has no number: %w", f.Name(), err)
		}
		body, err := clickHouseMigrations.ReadFile(dir + "/" + f.Name())
		if err != nil {
			return nil, fmt.Errorf("read migration: %w", err)
		}
		t, err := template.New(f.Name()).Funcs(template.FuncMap{
			"db": func() string { return c.Database }, "on": c.on, "engine": c.engine,
		}).Parse(stripComments(string(body)))
		if err != nil {
			return nil, fmt.Errorf("read migration %s: %w", f.Name(), err)
		}
		var sql strings.Builder
		if err := t.Execute(&sql, nil); err != nil {
			return nil, fmt.Errorf("read migration %s: %w", f.Name(), err)
		}
		m := migration{version: uint32(version)}
		for s := range strings.SplitSeq(sql.String(), ";") {
			if s = strings.TrimSpace(s); s != "" {
				m.statements = append(m.statements, s)
			}
		}
		out = append(out, m)
	}
	return out, nil
}

// stripComments takes away what stands behind two hyphens; no statement of
// ours has them within a text.
func stripComments(sql string) string {
	var out strings.Builder
	for line := range strings.Lines(sql) {
		code, _, commented := strings.Cut(line, "--")
		out.WriteString(code)
		if commented {
			out.WriteByte('\n')
		}
	}
	return out.String()
}

// retention sets how long rows are kept. A row whose leg has no start counts
// from the day on which it was stored.
func (c *ClickHouseConfig) retention() []string {
	row := func(table, stored string) string {
		if c.Records == 0 {
			return fmt.Sprintf("ALTER TABLE %s.%s %s REMOVE TTL", c.Database, table, c.on())
		}
		return fmt.Sprintf("ALTER TABLE %s.%s %s MODIFY TTL if(day = toDate(0), %s, day) + INTERVAL %d DAY", c.Database, table, c.on(), stored, days(c.Records))
	}
	raw := fmt.Sprintf("ALTER TABLE %s.report %s MODIFY COLUMN raw REMOVE TTL", c.Database, c.on())
	if c.Raw > 0 {
		raw = fmt.Sprintf("ALTER TABLE %s.report %s MODIFY COLUMN raw String CODEC(NONE) TTL stored + INTERVAL %d DAY",
			c.Database, c.on(), days(c.Raw))
	}
	return []string{row("cdr", "toDate(fromUnixTimestamp64Micro(seq))"), row("report", "toDate(stored)"), raw}
}

func days(d time.Duration) int { return int(d / (24 * time.Hour)) }

// migrate runs what has not run yet. Several processes may do so at once.
func (c *ClickHouse) migrate(ctx context.Context) error {
	for _, s := range c.cfg.prelude() {
		if err := c.conn.Exec(ctx, s); err != nil {
			return fmt.Errorf("make the database: %w", err)
		}
	}
	var done uint32
	if err := c.conn.QueryRow(ctx, "SELECT max(version) FROM "+c.table("migration")).Scan(&done); err != nil {
		return fmt.Errorf("read which migrations have run: %w", err)
	}
	all, err := c.cfg.migrations()
	if err != nil {
		return err
	}
	for _, m := range all {
		if m.version <= done {
			continue
		}
		for _, s := range m.statements {
			if err := c.conn.Exec(ctx, s); err != nil {
				return fmt.Errorf("migration %d: %w", m.version, err)
			}
		}
		if err := c.conn.Exec(ctx, fmt.Sprintf("INSERT INTO %s (version) VALUES (%d)", c.table("migration"), m.version)); err != nil {
			return fmt.Errorf("note migration %d: %w", m.version, err)
		}
	}
	return c.retain(ctx)
}

// retain sets the retention if it is another than before, which a comment of
// the table says: to change a TTL makes the server look at every part.
func (c *ClickHouse) retain(ctx context.Context) error {
	want := fmt.Sprintf("kept for %d days, raw events for %d (0: no limit of their own)", days(c.cfg.Records), days(c.cfg.Raw))
	var have string
	err := c.conn.QueryRow(ctx, "SELECT any(comment) FROM system.tables WHERE database = {db:String} AND name = 'cdr'", named("db", c.cfg.Database)).Scan(&have)
	if err != nil {
		return fmt.Errorf("read the retention: %w", err)
	}
	if have == want {
		return nil
	}
	for _, s := range c.cfg.retention() {
		// Where there is no TTL, there is none to remove.
		if err := c.conn.Exec(ctx, s); err != nil && !(strings.HasSuffix(s, "REMOVE TTL") && strings.Contains(err.Error(), "TTL")) {
			return fmt.Errorf("set the retention: %w", err)
		}
	}
	if err := c.conn.Exec(ctx, fmt.Sprintf("ALTER TABLE %s %s MODIFY COMMENT '%s'", c.table("cdr"), c.cfg.on(), want)); err != nil {
		return fmt.Errorf("note the retention: %w", err)
	}
	return nil
}
