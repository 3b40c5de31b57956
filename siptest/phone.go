package siptest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/emiago/sipgo/sip"

	"github.com/bulkhead-voip/bulkhead"
)

// PhoneConfig is one user agent of a group.
type PhoneConfig struct {
	// User and Domain are the address of record; a Domain may carry a port.
	// User "*" takes every call that no other phone takes, as a carrier does.
	User, Domain string
	// Name is the display name, or empty.
	Name string
	// AuthUser is the digest user; empty: User.
	AuthUser string
	// Password answers challenges, or else HA1 does. Both empty: challenges are
	// final. They are never printed as JSON.
	Password string `json:"-"`
	HA1      string `json:"-"`
	// Expires is asked of the registrar. 0: 10 minutes.
	Expires time.Duration
	// OnInvite says what to do with a call. Nil answers at once.
	OnInvite func(*Incoming) Behaviour
	// OnCall gets every call that was answered here, in a goroutine of its own.
	OnCall func(*Call)
}

// Behaviour is how a phone treats one incoming call.
type Behaviour struct {
	Code   int           // 300 to 699 refuses, without a Delay also without ringing; 0 and 200 answer
	Reason string        // of a refusal; empty: the code's usual one
	Delay  time.Duration // rings so long before it answers or refuses
	Talk   time.Duration // hangs up so long after the answer; 0: leaves that to the caller
	Tone   int           // Hz to send, a multiple of 50 below 4000; 0: 400; negative: silence
	Codecs []Codec       // accepted; empty: both
}

// DialOptions refine an outgoing call.
type DialOptions struct {
	CallID    string         // empty: a random one
	FromUser  string         // empty: the phone's user
	Headers   []sip.Header   // further headers
	Tone      int            // as in Behaviour
	Codecs    []Codec        // offered; empty: PCMU, PCMA
	Talk      time.Duration  // hangs up so long after the answer; 0: never
	OnRinging func(code int) // gets each provisional status but 100; must not block
}

// Phone is a user agent. It is safe for concurrent use.
type Phone struct {
	cfg     PhoneConfig
	group   *Phones
	alone   bool // the group is this phone's own
	aor     sip.Uri
	contact string
	callID  string // of the registrations

	regMu sync.Mutex // one REGISTER at a time
	seq   uint32
	mu    sync.Mutex
	timer *time.Timer // refreshes the registration
}

// NewPhone makes a phone with a socket of its own. Close it.
func NewPhone(group PhonesConfig, cfg PhoneConfig) (*Phone, error) {
	g, err := NewPhones(group)
	if err != nil {
		return nil, err
	}
	p, err := g.Add(cfg)
	if err != nil {
		return nil, errors.Join(err, g.Close())
	}
	p.alone = true
	return p, nil
}

// Close closes the socket of a phone made by NewPhone, as Phones.Close; a phone
// of a group it only keeps from registering again.
func (p *Phone) Close() error {
	p.schedule(0)
	if p.alone {
		return p.group.Close()
	}
	return nil
}

// User returns the configured user.
func (p *Phone) User() string { return p.cfg.User }

// Group returns the phone's group.
func (p *Phone) Group() *Phones { return p.group }

func (p *Phone) credentials() *Credentials {
	if p.cfg.Password == "" && p.cfg.HA1 == "" {
		return nil
	}
	user := p.cfg.AuthUser
	if user == "" {
		user = p.cfg.User
	}
	return &Credentials{User: user, Password: p.cfg.Password, HA1: p.cfg.HA1}
}

// Dial calls target, which is a URI, user@host, or a user of the phone's own
// domain, and waits for the answer. A refusal is a *StatusError; if ctx ends
// first the call is cancelled.
func (p *Phone) Dial(ctx context.Context, target string, opts DialOptions) (*Call, error) {
	if !strings.Contains(target, "@") && !strings.HasPrefix(target, "sip:") {
		target += "@" + p.cfg.Domain
	}
	if !strings.HasPrefix(target, "sip:") {
		target = "sip:" + target
	}
	var uri sip.Uri
	if err := sip.ParseUri(target, &uri); err != nil {
		return nil, fmt.Errorf("call %q: %w: %w", target, err, bulkhead.Invalid)
	}
	media, err := p.group.media.Open()
	if err != nil {
		return nil, err
	}
	inv := Invitation{
		URI: uri, From: *p.aor.Clone(), FromName: p.cfg.Name, Contact: p.contact, CallID: opts.CallID,
		Dest: p.group.proxy, Body: Offer(media.Addr(), opts.Codecs...), Headers: opts.Headers, Auth: p.credentials(),
	}
	if opts.FromUser != "" {
		inv.From.User = opts.FromUser
	}
	if opts.OnRinging != nil {
		inv.OnProvisional = func(res *sip.Response) { opts.OnRinging(res.StatusCode) }
	}
	d, err := p.group.stack.Invite(ctx, inv)
	if err != nil {
		return nil, errors.Join(err, media.Close())
	}
	c := &Call{phone: p, d: d, media: media, done: make(chan struct{})}
	remote, err := ParseSDP(d.RemoteSDP())
	if err == nil {
		c.codec, err = remote.Choose(opts.Codecs...)
	}
	if err == nil {
		media.SetRemote(remote.Addr)
		err = media.Send(c.codec, tone(opts.Tone))
	}
	if err != nil {
		_ = d.Bye(ctx, sip.NewHeader("Reason", "SIP;cause=488")) // the first error matters
		return nil, errors.Join(fmt.Errorf("the answer of %s: %w", target, err), media.Close())
	}
	if !p.group.add(c) {
		_ = d.Bye(ctx)
		return nil, errors.Join(errClosed, media.Close())
	}
	c.hangUpAfter(opts.Talk)
	return c, nil
}

func tone(hz int) int {
	switch {
	case hz < 0:
		return 0
	case hz == 0:
		return 400
	}
	return hz
}

// ring treats an incoming call. It runs in a goroutine of its own.
func (p *Phone) ring(in *Incoming) {
	in.user = p.contact
	var b Behaviour
	if p.cfg.OnInvite != nil {
		b = p.cfg.OnInvite(in)
	}
	refuse := b.Code != 0 && b.Code != sip.StatusOK
	if !refuse || b.Delay > 0 {
		_ = in.Progress(sip.StatusRinging, "Ringing", nil) // fails only if cancelled
	}
	if b.Delay > 0 {
		t := time.NewTimer(b.Delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-in.Canceled():
			return
		case <-p.group.done:
			_ = in.Reject(sip.StatusTemporarilyUnavailable, "Temporarily Unavailable")
			return
		}
	}
	if refuse {
		if b.Reason == "" {
			b.Reason = reason(b.Code)
		}
		_ = in.Reject(b.Code, b.Reason) // fails only if cancelled
		return
	}
	c, err := p.answer(in, b)
	if err != nil {
		p.group.stack.e.log.Debug("answer", "phone", p.cfg.User, "err", err)
		return
	}
	if p.cfg.OnCall != nil {
		p.cfg.OnCall(c)
	}
}

func (p *Phone) answer(in *Incoming, b Behaviour) (*Call, error) {
	media, err := p.group.media.Open()
	if err != nil {
		_ = in.Reject(sip.StatusServiceUnavailable, "No Media")
		return nil, err
	}
	body, remote, codec, err := Answer(in.Request().Body(), media.Addr(), b.Codecs...)
	if err != nil {
		_ = in.Reject(sip.StatusNotAcceptableHere, "Not Acceptable Here")
		return nil, errors.Join(err, media.Close())
	}
	media.SetRemote(remote.Addr)
	d, err := in.Answer(body)
	if err != nil {
		return nil, errors.Join(err, media.Close())
	}
	c := &Call{phone: p, d: d, media: media, codec: codec, done: make(chan struct{})}
	if err := media.Send(codec, tone(b.Tone)); err != nil {
		_ = d.Bye(context.Background())
		return nil, errors.Join(err, media.Close())
	}
	if !p.group.add(c) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = d.Bye(ctx)
		return nil, errors.Join(errClosed, media.Close())
	}
	c.hangUpAfter(b.Talk)
	return c, nil
}

// reason is the usual reason phrase (RFC 3261 section 21).
func reason(code int) string {
	switch code {
	case 400:
		return "Bad Request"
	case 401:
		return "Unauthorized"
	case 403:
		return "Forbidden"
	case 404:
		return "Not Found"
	case 407:
		return "Proxy Authentication Required"
	case 408:
		return "Request Timeout"
	case 480:
		return "Temporarily Unavailable"
	case 486:
		return "Busy Here"
	case 487:
		return "Request Terminated"
	case 488:
		return "Not Acceptable Here"
	case 500:
		return "Server Internal Error"
	case 503:
		return "Service Unavailable"
	case 600:
		return "Busy Everywhere"
	case 603:
		return "Decline"
	}
	return "Refused"
}
