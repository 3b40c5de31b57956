package main

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/registry"
	"github.com/bulkhead-voip/bulkhead/route"
)

// feedFlags let a process follow the feed of central configsvcs instead of a
// registry of its own.
type feedFlags struct {
	Central   []string `help:"URLs of central configsvcs, such as https://config.example:8081: follow the feed of the first that answers, and need no store." placeholder:"URL"`
	TokenFile string   `help:"File with the token of the node or SBC that this host is." type:"path" placeholder:"FILE"`
	CAFile    string   `help:"With --central: file with the certificates that its certificate must lead to. Default: those of the system." name:"ca-file" type:"path" placeholder:"FILE"`
}

func (f *feedFlags) remote(keys *registry.Keyring, log *slog.Logger, reg prometheus.Registerer) (*registry.Remote, error) {
	token, err := readToken(f.TokenFile)
	if err != nil {
		return nil, err
	}
	transport := http.DefaultTransport.(*http.Transport).Clone() //nolint:forcetypeassert // it is one
	transport.Proxy = nil                                        // the feed is within the platform
	if f.CAFile != "" {
		pem, err := os.ReadFile(f.CAFile)
		if err != nil {
			return nil, fmt.Errorf("--ca-file: %w", err)
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("--ca-file: %s holds no certificate: %w", f.CAFile, bulkhead.Invalid)
		}
		transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}
	}
	return registry.NewRemote(registry.RemoteOptions{
		URLs: f.Central, Token: token, Client: &http.Client{Transport: transport}, Keyring: keys, Log: log, Metrics: reg,
	})
}

// readToken reads the secret of a registry's token.
func readToken(file string) (string, error) {
	if file == "" {
		return "", fmt.Errorf("--token-file is missing: make a token with bulkhead token create --scope node (or sbc), and put it into a file: %w", bulkhead.Invalid)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("read the token: %w", err)
	}
	token := strings.TrimSpace(string(b))
	if !strings.HasPrefix(token, "bh_") || strings.ContainsAny(token, " \t\r\n") {
		return "", fmt.Errorf("%s holds no token (bh_...): %w", file, bulkhead.Invalid)
	}
	return token, nil
}

// feedListener serves the feed on a listener of its own.
type feedListener struct {
	Feed     string `help:"Serve the feed here too, where agents and dispatchers on other hosts reach it; the admin API need not be reachable then." placeholder:"IP:PORT"`
	FeedCert string `help:"With --feed: file with the certificate. Without one, digest secrets cross the network in the clear." type:"path" placeholder:"FILE"`
	FeedKey  string `help:"With --feed-cert: file with its key." type:"path" placeholder:"FILE"`
}

func startFeed(p *parts, g *group, feed http.Handler, f *feedListener) error {
	var certificate *tls.Config
	if f.FeedCert != "" {
		pair, err := tls.LoadX509KeyPair(f.FeedCert, f.FeedKey)
		if err != nil {
			return fmt.Errorf("--feed-cert: %w", err)
		}
		certificate = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}
	}
	l, err := net.Listen("tcp", f.Feed)
	if err != nil {
		return fmt.Errorf("listen for followers on %s: %w; choose another with --feed", f.Feed, err)
	}
	p.log.Info("feed", "addr", l.Addr().String(), "tls", certificate != nil)
	if certificate != nil {
		l = tls.NewListener(l, certificate)
	}
	mux := http.NewServeMux()
	mux.Handle(registry.FeedPath, feed)
	// The feed sets its own limits for what it writes.
	srv := &http.Server{
		Handler: mux, ReadTimeout: 5 * time.Second, WriteTimeout: time.Minute, IdleTimeout: time.Minute,
		MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
	}
	g.run(services, "feed listener", func(ctx context.Context) error { return serve(ctx, srv, l) })
	return nil
}

// follow keeps the live snapshot at the newest revision: of the central
// configsvcs if the flags name some, else of the registry in the data folder.
func (f *feedFlags) follow(p *parts, g *group, service string) error {
	if len(f.Central) > 0 {
		remote, err := f.remote(&p.keys, p.log, p.reg)
		if err != nil {
			return err
		}
		g.run(services, "feed", remote.Run)
		return p.follow(g, remote, service)
	}
	if f.TokenFile != "" || f.CAFile != "" {
		return fmt.Errorf("--token-file and --ca-file go with --central: %w", bulkhead.Invalid)
	}
	return p.followStore(g, &storeFlags{}, service)
}

// followStore opens the store, which this process then holds, and follows it.
func (p *parts) followStore(g *group, f *storeFlags, service string) error {
	store, err := f.open(g.ctx, p.data, false, true, p.log)
	if err != nil {
		return err
	}
	p.store = store
	g.onClose("registry", store.Close)
	g.run(services, "tokens", func(ctx context.Context) error { return store.Tokens().KeepKeys(ctx, &p.keys) })
	if f.embedded() { // the file is all on this host, and so is who may read the secrets beside it
		if err := p.takeSharedTokens(); err != nil {
			return err
		}
		service = ""
	}
	return p.follow(g, store, service)
}

// follow returns when the first revision is indexed. A service that is named
// keeps what it follows on disk, for a start with everything else dead.
func (p *parts) follow(g *group, store registry.Store, service string) error {
	first := make(chan struct{})
	changes := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "bulkhead_revision_updates_total",
		Help: "Times that a newer state came into force here: by a change, or whole, which indexes every tenant anew.",
	}, []string{"by"})
	p.reg.MustRegister(changes, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "bulkhead_revision", Help: "Number of the revision that is in force here.",
	}, func() float64 { return float64(p.revision()) }))
	f := &registry.Follower{Store: store, Log: p.log, Keyring: &p.keys, Metrics: p.reg, Apply: func(u registry.Update) error {
		begin := p.live.Load() == nil
		by := "change"
		if u.Change != nil {
			p.live.Store(p.live.Load().Apply(u.Change, u.Revision))
		} else {
			by = "state"
			p.live.Store(route.New(u.State))
		}
		changes.WithLabelValues(by).Inc()
		p.log.Info("revision in force", "revision", u.Revision)
		if begin {
			close(first)
		}
		return nil
	}}
	if service != "" {
		var err error
		if f.LastGood, err = registry.OpenLastGood(p.data.path("lastgood", service)); err != nil {
			return err
		}
	}
	p.follower.Store(f)
	g.run(services, "registry", f.Run)
	g.readyWhen("registry", func() error {
		switch {
		case p.live.Load() == nil:
			return fmt.Errorf("no revision came yet, and none is on disk: %s: %w", f.Status().Err, bulkhead.Unavailable)
		case p.revision() == 0:
			return fmt.Errorf("the registry is empty: fill it with bulkhead apply: %w", bulkhead.NotFound)
		}
		return nil
	})
	select {
	case <-first:
		return nil
	case <-g.ctx.Done():
		return g.ctx.Err()
	}
}

// revision returns the number of what is in force; 0: nothing is.
func (p *parts) revision() bulkhead.RevisionNumber {
	if x := p.live.Load(); x != nil {
		return x.Revision()
	}
	return 0
}

// following is what /readyz says of the registry.
type following struct {
	registry.FollowerStatus

	AgeSeconds float64 `json:"age_seconds"` // since what is in force was known to be the newest
}

func (p *parts) following() *following {
	f := p.follower.Load()
	if f == nil {
		return nil
	}
	s := &following{FollowerStatus: f.Status()}
	s.AgeSeconds = s.Age(time.Now()).Seconds()
	return s
}

// age is how long ago what is in force was known to be the newest.
func (p *parts) age() time.Duration {
	f := p.follower.Load()
	if f == nil {
		return 0
	}
	s := f.Status()
	return s.Age(time.Now())
}

// sharedTokens are the installation's own, of its data folder: any node and
// any SBC may use them where the registry itself is in that folder.
type sharedTokens struct{ node, sbc [sha256.Size]byte }

func (p *parts) takeSharedTokens() error {
	node, err := p.data.secret(nodeToken)
	if err != nil {
		return err
	}
	sbc, err := p.data.secret(sbcToken)
	if err != nil {
		return err
	}
	p.shared = &sharedTokens{sha256.Sum256([]byte(node)), sha256.Sum256([]byte(sbc))}
	return nil
}

// isNode reports whether a password is a node's: a token of its own, for the
// cell that it is in, or the installation's where that counts.
func (p *parts) isNode(x *route.Snapshot, node bulkhead.NodeID, password string) bool {
	if x.Node(node) == nil {
		return false
	}
	if key, ok := p.keys.Find(password); ok {
		return key.Node == node && key.Cell == x.CellOf(node)
	}
	sum := sha256.Sum256([]byte(password))
	return p.shared != nil && subtle.ConstantTimeCompare(sum[:], p.shared.node[:]) == 1
}

// isSBC is isNode for an SBC.
func (p *parts) isSBC(x *route.Snapshot, id bulkhead.SBCID, password string) bool {
	sbc := x.SBC(id)
	if sbc == nil {
		return false
	}
	if key, ok := p.keys.Find(password); ok {
		return key.SBC == id && key.Cell == sbc.Cell
	}
	sum := sha256.Sum256([]byte(password))
	return p.shared != nil && subtle.ConstantTimeCompare(sum[:], p.shared.sbc[:]) == 1
}
