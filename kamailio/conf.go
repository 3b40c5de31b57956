package kamailio

import (
	_ "embed"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"github.com/bulkhead-voip/bulkhead"
)

// The files of an SBC, all in one folder that belongs to the user that
// Kamailio and the dispatcher run as.
const (
	ConfFile     = "kamailio.cfg"    // shipped, the same everywhere
	IncludeFile  = "bulkhead.cfg"    // shipped: the routes that also an operator's own kamailio.cfg may include
	LocalFile    = "local.cfg"       // what differs between hosts
	TablesFile   = "tables.sqlite"   // the two tables and bulkhead_meta
	LocationFile = "location.sqlite" // registered contacts
	ListFile     = "dispatcher.list" // dispatcher sets
	SocketFile   = "rpc.sock"        // JSON-RPC
	PIDFile      = "kamailio.pid"
	lockFile     = "writer.lock"
)

// maxDir is the longest path of the folder: Kamailio takes at most 255 bytes
// of a database URL.
const maxDir = 200

//go:embed conf/kamailio.cfg
var shippedConf []byte

//go:embed conf/bulkhead.cfg
var shippedInclude []byte

// Params is what differs between hosts.
type Params struct {
	SBC bulkhead.SBCID
	// Listen is the UDP ip:port of the SBC, IPv4: nodes are reached from it.
	Listen string
	// Listen6 is a second address, [ip]:port, for callers over IPv6; empty: none.
	Listen6 string
	// Events is the host:port of the event bridge that takes POST
	// /kamailio/events; empty: nothing is reported.
	Events string
	// Route is the host:port of the configsvc that answers GET /kamailio/route
	// for calls of tenants that the tables do not know yet; empty: it is not
	// asked. With fewer than 4 workers nobody waits for it either.
	Route string
	// User and Token are what the SBC shows the event bridge and configsvc as
	// HTTP Basic credentials: a name of letters, digits and . _ -, and 16 to 200
	// letters, digits and _ - . Both or none. They stand in local.cfg, which only
	// the user that Kamailio runs as can read.
	User  string
	Token string `json:"-"`
	// Workers is the number of processes that read SIP, 1 to 64; 0: 4.
	Workers int
	// NodeTimeout is how long a node may say nothing at all to an INVITE
	// before the next one is asked, 100 ms to 30 s; 0: 2 s.
	NodeTimeout time.Duration
	// PingInterval is the time between two OPTIONS to each node, in whole
	// seconds, 1 s to 1 h; 0: 1 s.
	PingInterval time.Duration
	// Attach is for a kamailio.cfg that was there before: Write makes
	// bulkhead.cfg and what goes with it, and no kamailio.cfg. Listen, Listen6 and
	// Events are that file's own affair and must be empty or are not looked at.
	Attach bool
	// RPC is, with Attach, the datagram socket that the jsonrpcs module of that
	// Kamailio has already; empty: Lines sets one.
	RPC string
}

func (p Params) withDefaults() Params {
	if p.Workers == 0 {
		p.Workers = 4
	}
	if p.NodeTimeout == 0 {
		p.NodeTimeout = 2 * time.Second
	}
	if p.PingInterval == 0 {
		p.PingInterval = time.Second
	}
	return p
}

var (
	idForm   = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)
	userForm = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)
	// tokenForm leaves out what would end the password within a URL, or a
	// #!substdef.
	tokenForm = regexp.MustCompile(`^[A-Za-z0-9_-]{16,200}$`)
	hostForm  = regexp.MustCompile(`^[A-Za-z0-9.-]{1,253}:[0-9]{1,5}$`)
	// pathForm leaves out what would mean something in kamailio.cfg.
	pathForm = regexp.MustCompile(`^/[A-Za-z0-9._/+=@ -]*$`)
)

func invalid(field, format string, args ...any) error {
	return &bulkhead.FieldError{Kind: bulkhead.Invalid, Field: field, Msg: fmt.Sprintf(format, args...)}
}

// Validate returns everything that is wrong, each a *bulkhead.FieldError of
// kind bulkhead.Invalid.
func (p Params) Validate() error {
	p = p.withDefaults()
	var errs []error
	if !idForm.MatchString(string(p.SBC)) {
		errs = append(errs, invalid("sbc", "%q is not the id of an SBC", p.SBC))
	}
	errs = append(errs, p.validateListen()...)
	if p.Events != "" && !hostForm.MatchString(p.Events) {
		errs = append(errs, invalid("events", "%q is not host:port of the event bridge", p.Events))
	}
	if p.Route != "" && !hostForm.MatchString(p.Route) {
		errs = append(errs, invalid("route", "%q is not host:port of configsvc", p.Route))
	}
	if p.RPC != "" && (!p.Attach || !pathForm.MatchString(p.RPC) || len(p.RPC) > maxSocketPath) {
		errs = append(errs, invalid("rpc", "%q is not the path of a datagram socket of a Kamailio to attach to", p.RPC))
	}
	errs = append(errs, p.validateCredentials()...)
	if p.Workers < 1 || p.Workers > 64 {
		errs = append(errs, invalid("workers", "%d is not within 1 to 64", p.Workers))
	}
	if p.NodeTimeout < 100*time.Millisecond || p.NodeTimeout > 30*time.Second {
		errs = append(errs, invalid("node_timeout", "%s is not within 100ms to 30s", p.NodeTimeout))
	}
	if p.PingInterval < time.Second || p.PingInterval > time.Hour || p.PingInterval%time.Second != 0 {
		errs = append(errs, invalid("ping_interval", "%s is not whole seconds within 1s to 1h", p.PingInterval))
	}
	return errors.Join(errs...)
}

func (p Params) validateListen() []error {
	if p.Attach {
		if p.Events != "" {
			return []error{invalid("events", "%q: they are sent by the shipped kamailio.cfg only", p.Events)}
		}
		return nil
	}
	var errs []error
	if a, err := netip.ParseAddrPort(p.Listen); err != nil || !a.Addr().Is4() || a.Addr().IsUnspecified() || a.Port() == 0 {
		errs = append(errs, invalid("listen", "%q is not an IPv4 ip:port: give the address that nodes and phones reach", p.Listen))
	}
	if p.Listen6 != "" {
		if a, err := netip.ParseAddrPort(p.Listen6); err != nil || !a.Addr().Is6() || a.Addr().IsUnspecified() || a.Addr().Zone() != "" || a.Port() == 0 {
			errs = append(errs, invalid("listen6", "%q is not [ip]:port of IPv6", p.Listen6))
		}
	}
	return errs
}

func (p Params) validateCredentials() []error {
	if p.User == "" && p.Token == "" {
		return nil
	}
	var errs []error
	if p.Events == "" && p.Route == "" {
		errs = append(errs, invalid("events", "is empty, and so is route, but there are credentials for them"))
	}
	if !userForm.MatchString(p.User) {
		errs = append(errs, invalid("user", "%q is not 1 to 64 letters, digits and . _ -", p.User))
	}
	if !tokenForm.MatchString(p.Token) { // not its text: it is a secret
		errs = append(errs, invalid("token", "is not 16 to 200 letters, digits and _ -"))
	}
	return errs
}

// Local renders local.cfg for an SBC whose files are in dir, an absolute path.
func (p Params) Local(dir string) ([]byte, error) {
	if err := p.Validate(); err != nil {
		return nil, fmt.Errorf("render %s: %w", LocalFile, err)
	}
	if !pathForm.MatchString(dir) || len(dir) > maxDir {
		return nil, fmt.Errorf("render %s: kamailio cannot take the folder %q: choose one whose absolute path is of letters, digits, spaces and . _ / + = @ -, %d at most: %w", LocalFile, dir, maxDir, bulkhead.Invalid)
	}
	sockets, err := socketDir(dir)
	if err != nil {
		return nil, fmt.Errorf("render %s: %w", LocalFile, err)
	}
	p = p.withDefaults()
	var b strings.Builder
	b.WriteString("# Written by bulkhead: what differs between hosts. kamailio.cfg includes it.\n")
	define := func(name string, value any) { fmt.Fprintf(&b, "#!define %s %v\n", name, value) }
	subst := func(name, value string) { fmt.Fprintf(&b, "#!substdef \"!%s!%s!g\"\n", name, value) }
	credentials := ""
	if p.User != "" {
		credentials = p.User + ":" + p.Token + "@"
	}
	define("BULKHEAD_NODE_TIMEOUT", p.NodeTimeout.Milliseconds())
	define("BULKHEAD_PING_INTERVAL", int(p.PingInterval/time.Second))
	subst("BULKHEAD_SBC", string(p.SBC))
	subst("BULKHEAD_TABLES", filepath.Join(dir, TablesFile))
	subst("BULKHEAD_DISPATCHER_LIST", filepath.Join(dir, ListFile))
	if p.Route != "" {
		subst("BULKHEAD_ROUTE", credentials+p.Route)
		define("BULKHEAD_MISS_WORKERS", p.Workers/4)
	}
	if p.Attach {
		b.WriteString("#!define BULKHEAD_ATTACHED\n")
		return []byte(b.String()), nil
	}
	define("BULKHEAD_LISTEN", "udp:"+p.Listen)
	if p.Listen6 != "" {
		define("BULKHEAD_LISTEN6", "udp:"+p.Listen6)
	} else {
		subst("BULKHEAD_OWN_ROUTE", "<sip:"+p.Listen+";lr>")
	}
	define("BULKHEAD_CHILDREN", p.Workers)
	subst("BULKHEAD_RPC", filepath.Join(sockets, SocketFile))
	subst("BULKHEAD_LOCATION", filepath.Join(dir, LocationFile))
	if p.Events != "" {
		subst("BULKHEAD_EVENTS", credentials+p.Events)
	}
	return []byte(b.String()), nil
}

// File is a configuration file of an SBC.
type File struct {
	Name string
	Text []byte
}

// Files returns the configuration files of an SBC whose folder is dir, an
// absolute path. local.cfg may hold a token.
func (p Params) Files(dir string) ([]File, error) {
	local, err := p.Local(dir)
	if err != nil {
		return nil, err
	}
	files := []File{{LocalFile, local}, {IncludeFile, shippedInclude}}
	if !p.Attach {
		files = append(files, File{ConfFile, shippedConf})
	}
	return files, nil
}

// Write makes dir ready for a first or a further start: it writes the
// configuration files, and creates the tables, the contacts and the dispatcher
// list that are not there yet, empty. What Kamailio or the dispatcher wrote stays.
func (p Params) Write(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("write the files of an SBC: %w", err)
	}
	files, err := p.Files(dir)
	if err != nil {
		return err
	}
	// The sockets and the digest secrets are in it.
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("write the files of an SBC: %w", err)
	}
	if err := writeRuntime(dir, p.RPC); err != nil {
		return err
	}
	if err := createTables(filepath.Join(dir, TablesFile)); err != nil {
		return err
	}
	if !p.Attach {
		if err := createLocation(filepath.Join(dir, LocationFile)); err != nil {
			return err
		}
	}
	list := filepath.Join(dir, ListFile)
	if _, err := os.Stat(list); errors.Is(err, os.ErrNotExist) {
		if err := writeFile(list, nil); err != nil {
			return err
		}
	}
	for _, f := range files {
		if err := writeFile(filepath.Join(dir, f.Name), f.Text); err != nil {
			return err
		}
	}
	return nil
}

// writeFile replaces a file as a whole, and has it and its name on disk when
// it returns.
func writeFile(path string, data []byte) error {
	if err := renameio.WriteFile(path, data, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer d.Close() //nolint:errcheck // opened to sync only
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync the folder of %s: %w", path, err)
	}
	return nil
}
