package cdrpipe

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/bulkhead-voip/bulkhead"
)

// ClickHouseConfig says where the warehouse is and what it keeps. Start from
// DefaultClickHouseConfig or ParseClickHouseURL.
type ClickHouseConfig struct {
	Addrs    []string // host:port of the native protocol; the first that answers is used
	Database string   // is made if it is not there; letters, digits and _
	User     string
	Password string // never logged
	TLS      bool

	// Cluster makes replicated tables ON CLUSTER, and waits with every insert
	// for a majority of the replicas. Empty: a single server.
	Cluster string

	Records time.Duration // after so long a record is deleted, whole days; 0: never
	Raw     time.Duration // after so long what the switch said is deleted, whole days; 0: with the record

	// ExportLag keeps the newest rows out of exports, so that a server's
	// clock may step back by so much and no row is passed over.
	ExportLag time.Duration

	// ReadOnly is for who only asks: no table is made, no retention changed.
	ReadOnly bool
}

// DefaultClickHouseConfig is the database bulkhead on this host. Records stay
// for ever, raw events for 7 days; an export is 2 s behind.
func DefaultClickHouseConfig() ClickHouseConfig {
	return ClickHouseConfig{
		Addrs: []string{"127.0.0.1:9000"}, Database: "bulkhead", User: "default",
		Raw: 7 * 24 * time.Hour, ExportLag: 2 * time.Second,
	}
}

// ParseClickHouseURL reads clickhouse://user@host:port,host:port/database. The
// query may hold secure=true for TLS, cluster=NAME, and records=DAYS and
// raw=DAYS, how long records and raw events are kept. A password in it is
// refused: other users of the host could read it. The error is
// bulkhead.Invalid.
func ParseClickHouseURL(s string) (ClickHouseConfig, error) {
	c := DefaultClickHouseConfig()
	bad := func(msg string) (ClickHouseConfig, error) {
		return ClickHouseConfig{}, fmt.Errorf("the ClickHouse address %s: %w", msg, bulkhead.Invalid)
	}
	u, err := url.Parse(s)
	switch {
	case err != nil: // it would show the password
		return bad("is not a URL such as clickhouse://user@host:9000/bulkhead")
	case u.Scheme != "clickhouse" || u.Host == "" || u.Opaque != "" || u.Fragment != "":
		return bad("must look like clickhouse://user@host:9000/bulkhead")
	}
	if _, has := u.User.Password(); has {
		return bad("must not hold the password: give it as a file or in the environment")
	}
	c.User = cmp.Or(u.User.Username(), c.User)
	c.Database = cmp.Or(strings.Trim(u.Path, "/"), c.Database)
	c.Addrs = nil
	for host := range strings.SplitSeq(u.Host, ",") {
		if _, _, err := net.SplitHostPort(host); err != nil {
			host = net.JoinHostPort(strings.Trim(host, "[]"), "9000")
		}
		c.Addrs = append(c.Addrs, host)
	}
	for key, values := range u.Query() {
		v := values[len(values)-1]
		switch key {
		case "secure":
			if c.TLS, err = strconv.ParseBool(v); err != nil {
				return bad("has secure=" + strconv.Quote(v) + ", it must be true or false")
			}
		case "cluster":
			c.Cluster = v
		case "records", "raw":
			days, err := strconv.ParseUint(v, 10, 16)
			if err != nil {
				return bad("has " + key + "=" + strconv.Quote(v) + ", it must be a number of days")
			}
			*map[string]*time.Duration{"records": &c.Records, "raw": &c.Raw}[key] = time.Duration(days) * 24 * time.Hour
		default:
			return bad("has the unknown setting " + strconv.Quote(key))
		}
	}
	return c, c.Validate()
}

// Validate names every field that is out of its range.
func (c *ClickHouseConfig) Validate() error {
	var errs []error
	check := func(ok bool, field, want string) {
		if !ok {
			errs = append(errs, &bulkhead.FieldError{Kind: bulkhead.Invalid, Field: "clickhouse." + field, Msg: want})
		}
	}
	name := regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,63}$`)
	check(len(c.Addrs) > 0, "Addrs", "must name a server")
	check(name.MatchString(c.Database), "Database", "must be letters, digits and _")
	check(c.Cluster == "" || name.MatchString(c.Cluster), "Cluster", "must be letters, digits and _")
	const day = 24 * time.Hour
	check(c.Records >= 0 && c.Records%day == 0 && c.Records <= 60_000*day, "Records", "must be whole days")
	check(c.Raw >= 0 && c.Raw%day == 0 && c.Raw <= 60_000*day, "Raw", "must be whole days")
	check(c.ExportLag >= 0, "ExportLag", "must not be below zero")
	return errors.Join(errs...)
}

// ClickHouse is a Warehouse in a ClickHouse server, version 25.3 or later.
//
// Every report of a leg is stored in the table report under a hash of itself,
// and the table cdr holds what all reports of a leg say together, in a version
// that is their number. So nothing depends on the order of batches, on their
// cut, on an insert whose answer was lost or that takes effect late, or on
// being the only one who writes: the row made of all reports has the highest
// version.
type ClickHouse struct {
	cfg  ClickHouseConfig
	conn driver.Conn
}

var _ Warehouse = (*ClickHouse)(nil)

// OpenClickHouse connects and brings the tables up to date. The error is
// bulkhead.Denied if the server refuses the user, its password or a
// permission, and bulkhead.Unavailable if it cannot be used otherwise.
func OpenClickHouse(ctx context.Context, cfg ClickHouseConfig) (*ClickHouse, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	o := &clickhouse.Options{
		Addr:            cfg.Addrs,
		Auth:            clickhouse.Auth{Username: cfg.User, Password: cfg.Password}, // tables are named with their database, which may not exist yet
		DialTimeout:     5 * time.Second,
		ReadTimeout:     time.Minute,
		MaxOpenConns:    8,
		MaxIdleConns:    4,
		ConnMaxLifetime: 10 * time.Minute,
		Settings:        cfg.settings(),
		ClientInfo:      clickhouse.ClientInfo{Products: []struct{ Name, Version string }{{"bulkhead", "1"}}},
	}
	if cfg.TLS {
		o.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	conn, err := clickhouse.Open(o)
	if err != nil {
		return nil, fmt.Errorf("open ClickHouse at %s: %w: %w", strings.Join(cfg.Addrs, ", "), bulkhead.Unavailable, err)
	}
	c := &ClickHouse{cfg: cfg, conn: conn}
	prepare := c.migrate
	if cfg.ReadOnly {
		prepare = c.look
	}
	if err := prepare(ctx); err != nil {
		if err = cfg.explain(err); !errors.Is(err, bulkhead.NotFound) && !errors.Is(err, bulkhead.Denied) {
			err = fmt.Errorf("%w: %w", bulkhead.Unavailable, err)
		}
		return nil, errors.Join(fmt.Errorf("open ClickHouse at %s: %w", strings.Join(cfg.Addrs, ", "), err), conn.Close())
	}
	return c, nil
}

// explain says what to do where the server is there and refuses us: waiting
// does not mend that. Other errors it returns as they are.
func (c *ClickHouseConfig) explain(err error) error {
	var refused *clickhouse.Exception
	if !errors.As(err, &refused) {
		return err
	}
	switch refused.Code {
	case 192, 193, 194, 516: // unknown user, wrong or missing password
		return fmt.Errorf("ClickHouse refuses the user %q or its password: look at --warehouse, and at --warehouse-password-file or BULKHEAD_WAREHOUSE_PASSWORD: %w: %w", c.User, bulkhead.Denied, err)
	case 164, 291, 497: // read only, no access to the database, a missing grant
		return fmt.Errorf("ClickHouse refuses the user %q a permission: grant it what docs/cdr.md lists: %w: %w", c.User, bulkhead.Denied, err)
	}
	return err
}

// look makes sure that there is something to ask.
func (c *ClickHouse) look(ctx context.Context) error {
	var tables uint64
	err := c.conn.QueryRow(ctx, "SELECT count() FROM system.tables WHERE database = {db:String} AND name = 'cdr'", named("db", c.cfg.Database)).Scan(&tables)
	if err == nil && tables == 0 {
		return fmt.Errorf("its database %s holds no call records that this user may read; cdrpipe makes the tables at its start: %w", c.cfg.Database, bulkhead.NotFound)
	}
	return err
}

func (c *ClickHouseConfig) settings() clickhouse.Settings {
	s := clickhouse.Settings{
		"async_insert":                    0, // acknowledged means stored
		"max_partitions_per_insert_block": 0, // a replay may hold the records of a year
		"log_comment":                     c.comment(),
		// The day is both the partition and in the key.
		"do_not_merge_across_partitions_select_final": 1,
		"use_skip_indexes_if_final":                   1,
		"use_skip_indexes_if_final_exact_mode":        1,
	}
	if c.Cluster != "" {
		s["insert_quorum"] = "auto"
		s["insert_quorum_parallel"] = 0
		s["select_sequential_consistency"] = 1
	}
	return s
}

// comment marks our queries on the server, for Export and for who looks.
func (c *ClickHouseConfig) comment() string { return "bulkhead/" + c.Database }

// Close ends the connections.
func (c *ClickHouse) Close() error { return c.conn.Close() }

// table is the whole name of a table.
func (c *ClickHouse) table(name string) string { return c.cfg.Database + "." + name }
