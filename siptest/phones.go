package siptest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/emiago/sipgo/sip"

	"github.com/bulkhead-voip/bulkhead"
)

// PhonesConfig is the configuration of a group of phones on one socket.
type PhonesConfig struct {
	// Listen is one numeric ip:port, the source of everything the phones send;
	// port 0 lets the system choose. RTP uses its address. Empty: 127.0.0.1:0.
	Listen string
	// Proxy is the numeric ip:port that every request outside a dialog goes to:
	// registrar and outbound proxy. Empty: requests go to their URI's address.
	Proxy string
	// T1 as in StackConfig.
	T1 time.Duration
	// Media carries the RTP; it is not closed with the phones. Nil: an engine of
	// the group's own.
	Media *MediaEngine
	// Logger; nil discards.
	Logger *slog.Logger
}

// Phones is a group of user agents that share one socket, told apart by the
// user part of their Contact.
type Phones struct {
	cfg   PhonesConfig
	proxy netip.AddrPort
	stack *Stack
	media *MediaEngine
	own   bool // media is the group's own
	wg    sync.WaitGroup
	done  chan struct{}

	mu       sync.Mutex
	contacts map[string]*Phone // by user part of the Contact
	users    map[string]*Phone // by User, the first of that name
	calls    map[*Call]struct{}
	closed   bool
	started  chan struct{} // closed when the fields above may be used
}

// NewPhones binds the socket and starts to serve. Close it.
func NewPhones(cfg PhonesConfig) (*Phones, error) {
	p := &Phones{
		cfg: cfg, media: cfg.Media, done: make(chan struct{}), started: make(chan struct{}),
		contacts: map[string]*Phone{}, users: map[string]*Phone{}, calls: map[*Call]struct{}{},
	}
	if cfg.Proxy != "" {
		ap, err := netip.ParseAddrPort(cfg.Proxy)
		if err != nil {
			return nil, fmt.Errorf("proxy %q: want a numeric ip:port: %w", cfg.Proxy, bulkhead.Invalid)
		}
		p.proxy = ap
	}
	var err error
	p.stack, err = NewStack(StackConfig{
		Listen: cfg.Listen, T1: cfg.T1, Logger: cfg.Logger, UserAgent: "Bulkhead-phone",
		OnInvite: func(in *Incoming) { <-p.started; p.invite(in) },
	})
	if err != nil {
		return nil, err
	}
	if p.media == nil {
		p.own = true
		p.media, err = NewMediaEngine(MediaConfig{IP: p.stack.Addr().Addr().String(), Logger: cfg.Logger})
		if err != nil {
			close(p.started)
			return nil, errors.Join(err, p.stack.Close())
		}
	}
	close(p.started)
	return p, nil
}

// Addr is the address that the phones listen on and send from.
func (p *Phones) Addr() netip.AddrPort { return p.stack.Addr() }

// Calls returns the number of calls that are up.
func (p *Phones) Calls() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.calls)
}

// Add makes a phone. Two phones may have the same user in different domains.
func (p *Phones) Add(cfg PhoneConfig) (*Phone, error) {
	if cfg.User == "" {
		return nil, fmt.Errorf("phone: no user: %w", bulkhead.Invalid)
	}
	if cfg.Domain == "" {
		cfg.Domain = p.Addr().String()
	}
	var aor sip.Uri
	if err := sip.ParseUri("sip:"+cfg.User+"@"+cfg.Domain, &aor); err != nil {
		return nil, fmt.Errorf("phone %s@%s: %w: %w", cfg.User, cfg.Domain, err, bulkhead.Invalid)
	}
	if cfg.Expires <= 0 {
		cfg.Expires = 10 * time.Minute
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, fmt.Errorf("phone %s@%s: the group is closed: %w", cfg.User, cfg.Domain, bulkhead.Unavailable)
	}
	ph := &Phone{cfg: cfg, group: p, aor: aor, contact: cfg.User + "." + strconv.Itoa(len(p.contacts)+1), callID: newTag() + newTag()}
	p.contacts[ph.contact] = ph
	if p.users[cfg.User] == nil {
		p.users[cfg.User] = ph
	}
	return ph, nil
}

// Close hangs up what is up, waiting at most 2 s for the answers, and frees
// the sockets. It does not unregister.
func (p *Phones) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	close(p.done)
	var open []*Call
	for c := range p.calls {
		open = append(open, c)
	}
	p.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for _, c := range open {
		wg.Go(func() { _ = c.Hangup(ctx) }) // the far end may be gone already
	}
	wg.Wait()
	err := p.stack.Close()
	p.wg.Wait()
	if p.own {
		err = errors.Join(err, p.media.Close())
	}
	return err
}

// invite finds the phone that is called: by the Contact that it registered,
// else by its user, else the phone with user "*".
func (p *Phones) invite(in *Incoming) {
	user := in.Request().Recipient.User
	p.mu.Lock()
	ph := p.contacts[user]
	if ph == nil {
		ph = p.users[user]
	}
	if ph == nil {
		ph = p.users["*"]
	}
	p.mu.Unlock()
	if ph == nil {
		_ = in.Reject(sip.StatusNotFound, "Not Found") // fails only if cancelled
		return
	}
	ph.ring(in)
}

// add starts to look after a call; false if the group is closing.
func (p *Phones) add(c *Call) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.calls[c] = struct{}{}
	p.wg.Go(func() {
		<-c.d.Done()
		_ = c.media.Close() // a socket that is closed twice loses nothing
		p.mu.Lock()
		delete(p.calls, c)
		p.mu.Unlock()
		close(c.done)
	})
	return true
}
