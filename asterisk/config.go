package asterisk

import (
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/bulkhead-voip/bulkhead"
)

// Config says which Asterisk to listen to, and how. Zero durations and sizes
// stand for their defaults.
type Config struct {
	Node bulkhead.NodeID
	Cell bulkhead.CellID
	ARI  ARI
	AMI  AMI // second source of the same legs; without Addr there is none

	// TenantVar is the channel variable whose value is the tenant's id: TENANT.
	// It must be among the channelvars of ari.conf.
	TenantVar string
	// MaxLegs bounds the legs that are remembered while they go on: 100000.
	// What is not remembered has a record without what only earlier events told.
	MaxLegs int
	// QueueBytes bounds the events that wait to be decoded: 64 MiB.
	QueueBytes int
}

// ARI says how to reach the Asterisk REST Interface.
type ARI struct {
	// URL is http://host:port/ari, with the prefix of http.conf before /ari if
	// there is one. A NewOutbound source has none: Asterisk connects to it.
	URL      string
	User     string
	Password string
	// App is the Stasis application to listen as: bulkhead-events. One
	// application has one listener, so every event bridge needs a name of its own.
	App string
	// Timeout of connecting, and of one request: 5 s.
	Timeout time.Duration
	// Ping is how often the connection is tried: 3 s. One that does not answer
	// within 4 s is given up, so a half-open one is found within Ping + 4 s.
	Ping time.Duration
}

// AMI says how to reach the Asterisk Manager Interface.
type AMI struct {
	Addr     string // host:port; empty: not used
	User     string
	Secret   string
	Timeout  time.Duration  // of connecting and of one action: 5 s
	Ping     time.Duration  // as in ARI: 3 s
	Location *time.Location // of Asterisk's clock; nil: worked out from each row
}

// String leaves the password out.
func (a ARI) String() string { return "ARI " + a.URL + " as " + a.User }

// GoString leaves the password out.
func (a ARI) GoString() string { return a.String() }

// LogValue leaves the password out.
func (a ARI) LogValue() slog.Value { return slog.StringValue(a.String()) }

// String leaves the secret out.
func (a AMI) String() string { return "AMI " + a.Addr + " as " + a.User }

// GoString leaves the secret out.
func (a AMI) GoString() string { return a.String() }

// LogValue leaves the secret out.
func (a AMI) LogValue() slog.Value { return slog.StringValue(a.String()) }

const pongWait = 4 * time.Second

func (c Config) withDefaults() Config {
	set := func(d *time.Duration, to time.Duration) {
		if *d <= 0 {
			*d = to
		}
	}
	set(&c.ARI.Timeout, 5*time.Second)
	set(&c.ARI.Ping, 3*time.Second)
	set(&c.AMI.Timeout, 5*time.Second)
	set(&c.AMI.Ping, 3*time.Second)
	if c.ARI.App == "" {
		c.ARI.App = "bulkhead-events"
	}
	if c.TenantVar == "" {
		c.TenantVar = "TENANT"
	}
	if c.MaxLegs <= 0 {
		c.MaxLegs = 100_000
	}
	if c.QueueBytes <= 0 {
		c.QueueBytes = 64 << 20
	}
	return c
}

// validate refuses what must not reach the wire.
func (c Config) validate(dials bool) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("asterisk source %s: %s: %w", c.Node, fmt.Sprintf(format, args...), bulkhead.Invalid)
	}
	if c.Node == "" || c.Cell == "" {
		return bad("node and cell must be named")
	}
	if c.ARI.User == "" || c.ARI.Password == "" || strings.ContainsAny(c.ARI.User, ":\r\n") || strings.ContainsAny(c.ARI.Password, "\r\n") {
		return bad("ARI needs a user, without a colon, and a password")
	}
	if strings.ContainsAny(c.ARI.App, ",&?#/ \r\n") {
		return bad("the application %q holds a character that ARI takes for something else", c.ARI.App)
	}
	if dials {
		u, err := url.Parse(c.ARI.URL)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			return bad("the URL of ARI must be as http://127.0.0.1:8088/ari, without a password in it")
		}
	} else if c.ARI.URL != "" {
		return bad("it has a URL, but Asterisk connects to this source")
	}
	if c.AMI.Addr == "" {
		return nil
	}
	if _, _, err := net.SplitHostPort(c.AMI.Addr); err != nil {
		return bad("the address of AMI, %q, is not host:port", c.AMI.Addr)
	}
	if c.AMI.User == "" || c.AMI.Secret == "" || strings.ContainsAny(c.AMI.User+c.AMI.Secret, "\r\n") {
		return bad("AMI needs a user and a secret without line ends")
	}
	return nil
}
