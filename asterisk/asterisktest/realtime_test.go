package asterisktest_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/asterisk"
	"github.com/bulkhead-voip/bulkhead/asterisk/asterisktest"
	"github.com/bulkhead-voip/bulkhead/siptest"
)

var discard = slog.New(slog.DiscardHandler)

// rig is a real Asterisk on exactly asterisk/conf, with a back end, phones at
// 127.0.0.1 and a carrier at 127.0.0.9.
type rig struct {
	*asterisktest.Daemon
	back    *backend
	phones  *siptest.Phones
	carrier *siptest.Phone

	mu   sync.Mutex
	rang []string // who was called, with the codecs that he was offered
	busy int      // how many calls the carrier still refuses
}

func newRig(t *testing.T, conf map[string]string) *rig {
	t.Helper()
	asterisktest.Need(t)
	r := &rig{}
	group, err := siptest.NewPhones(siptest.PhonesConfig{Listen: carrierIP + ":0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = group.Close() })
	if r.carrier, err = group.Add(siptest.PhoneConfig{User: "*", OnInvite: func(in *siptest.Incoming) siptest.Behaviour {
		r.note("carrier:"+in.Request().Recipient.User+" from "+in.Request().From().Address.User+account(in), in)
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.busy > 0 {
			r.busy--
			return siptest.Behaviour{Code: 503}
		}
		return siptest.Behaviour{}
	}}); err != nil {
		t.Fatal(err)
	}
	r.back = newBackend(t, twoTenants(group.Addr()))
	r.Daemon = asterisktest.Start(t, asterisktest.Options{Conf: conf, Node: &asterisk.NodeParams{
		Node: "ast1", Token: nodeToken, URLs: []string{r.back.srv.URL},
	}})
	if r.phones, err = siptest.NewPhones(siptest.PhonesConfig{Proxy: r.SIP.String()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.phones.Close() })
	return r
}

// account is what the tenant's header rule adds.
func account(in *siptest.Incoming) string {
	if h := in.Request().GetHeader("X-Account"); h != nil {
		return " [" + h.Value() + "]"
	}
	return ""
}

// note writes down that somebody was called.
func (r *rig) note(who string, in *siptest.Incoming) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for line := range strings.Lines(string(in.Request().Body())) {
		if strings.HasPrefix(line, "m=audio") {
			who += " " + strings.Join(strings.Fields(line)[3:], ",")
		}
	}
	r.rang = append(r.rang, who)
}

// called returns who was called since the last time.
func (r *rig) called() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := strings.Join(r.rang, "; ")
	r.rang = nil
	return s
}

// phone makes a phone of a user that does b with calls, and registers it.
func (r *rig) phone(t *testing.T, extension, domain string, b siptest.Behaviour) *siptest.Phone {
	t.Helper()
	p, err := r.phones.Add(siptest.PhoneConfig{
		User: extension, Domain: domain, Password: "secret-" + extension,
		OnInvite: func(in *siptest.Incoming) siptest.Behaviour {
			r.note(extension+"@"+domain, in)
			return b
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := register(t, p); err != nil {
		t.Fatalf("register %s@%s: %v", extension, domain, err)
	}
	return p
}

func register(t *testing.T, p *siptest.Phone) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	return p.Register(ctx)
}

// dial calls, and hangs up when the test ends unless it has hung up before.
func dial(t *testing.T, p *siptest.Phone, target string) (*siptest.Call, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	return p.Dial(ctx, target, siptest.DialOptions{})
}

// answered calls and hangs up; the call must be answered.
func answered(t *testing.T, p *siptest.Phone, target string) {
	t.Helper()
	c, err := dial(t, p, target)
	if err != nil {
		t.Fatalf("%s calls %s: %v", p.User(), target, err)
	}
	hangUp(t, c)
}

func hangUp(t *testing.T, c *siptest.Call) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := c.Hangup(ctx); err != nil {
		t.Errorf("hang up: %v", err)
	}
}

// refused calls and wants a status.
func refused(t *testing.T, p *siptest.Phone, target string, code int) {
	t.Helper()
	c, err := dial(t, p, target)
	var status *siptest.StatusError
	if err == nil {
		hangUp(t, c)
	}
	if !errors.As(err, &status) || status.Code != code {
		t.Errorf("%s calls %s: %v, not refused with %d", p.User(), target, err, code)
	}
}

// atSIP is a number as a carrier calls it.
func (r *rig) atSIP(number string) string { return "sip:" + number + "@" + r.SIP.String() }

// TestTwoTenants: two tenants with the same extensions on one Asterisk, with
// every kind of call.
func TestTwoTenants(t *testing.T) {
	r := newRig(t, nil)
	a101 := r.phone(t, "101", "acme.example", siptest.Behaviour{})
	_ = r.phone(t, "102", "acme.example", siptest.Behaviour{})
	g101 := r.phone(t, "101", "globex.example", siptest.Behaviour{})
	_ = r.phone(t, "102", "globex.example", siptest.Behaviour{})
	alias := r.phone(t, "103", "acme.test", siptest.Behaviour{Code: 486})

	was := func(t *testing.T, want string) {
		t.Helper()
		if got := r.called(); got != want {
			t.Errorf("%q was called, not %q", got, want)
		}
	}
	t.Run("inside", func(t *testing.T) {
		// 8 is PCMA, 0 PCMU, 101 telephone-event.
		answered(t, a101, "102")
		was(t, "102@acme.example 8,101")
		answered(t, g101, "102")
		was(t, "102@globex.example 0,101")
		answered(t, alias, "101") // registered under the tenant's second domain
		was(t, "101@acme.example 8,101")
	})
	t.Run("apart", func(t *testing.T) {
		refused(t, a101, "103", 486)
		was(t, "103@acme.test 8,101")
		// 103 is a foreign number to globex, which may call none.
		refused(t, g101, "103", 403)
		refused(t, g101, "103@acme.example", 403)
		refused(t, g101, "acme.trunk.first", 404)
		refused(t, g101, "101%26PJSIP%2F101%40acme.example", 404)
		was(t, "")
	})
	t.Run("out", func(t *testing.T) {
		answered(t, a101, "0301234567")
		was(t, "carrier:49301234567 from 493012340 [acme: 1] 8,101")
		refused(t, g101, "0301234567", 404) // it has no country, in which that could be a number
		refused(t, a101, "0012125550123", 403)
		was(t, "")
	})
	t.Run("failover", func(t *testing.T) {
		r.mu.Lock()
		r.busy = 1
		r.mu.Unlock()
		answered(t, a101, "0301234567")
		was(t, "carrier:49301234567 from 493012340 [acme: 1] 8,101; carrier:49301234567 from 493012340 [acme: 1] 8,101")
	})
	t.Run("carriers that fail", func(t *testing.T) {
		r.mu.Lock()
		r.busy = 2
		r.mu.Unlock()
		refused(t, a101, "0301234567", 480) // not 503: an SBC would take this Asterisk for sick
		r.called()
	})
	t.Run("in", func(t *testing.T) {
		answered(t, r.carrier, r.atSIP("493012340"))
		was(t, "101@acme.example 8,101")
		refused(t, r.carrier, r.atSIP("0301234567"), 404) // it may not go out again
		was(t, "")
	})
	t.Run("group", func(t *testing.T) {
		answered(t, r.carrier, r.atSIP("493012341"))
		if got := r.called(); !strings.Contains(got, "101@acme.example") || !strings.Contains(got, "102@acme.example") {
			t.Errorf("a group of two rang %q", got)
		}
	})
	t.Run("group with a number outside", func(t *testing.T) {
		answered(t, r.carrier, r.atSIP("493012343"))
		if got := r.called(); !strings.Contains(got, "103@acme.test") || !strings.Contains(got, "carrier:49309999 from 493012340 [acme: 1]") {
			t.Errorf("a phone and a number outside rang %q", got)
		}
	})
	t.Run("voicemail", func(t *testing.T) {
		c, err := dial(t, r.carrier, r.atSIP("493012342"))
		if err != nil {
			t.Fatal(err)
		}
		message := filepath.Join(r.Dir, "var/voicemail/acme/102/INBOX/msg0000.txt")
		// The greeting comes first; the message begins with its recording.
		until(t, "a message is being recorded", func() bool {
			tmp, _ := filepath.Glob(filepath.Join(r.Dir, "var/voicemail/acme/102/tmp/*.wav"))
			return len(tmp) > 0
		})
		hangUp(t, c)
		until(t, "the message is stored", func() bool { _, err := os.Stat(message); return err == nil })
	})
	t.Run("limit", func(t *testing.T) {
		var up []*siptest.Call
		for range 3 {
			c, err := dial(t, a101, "102")
			if err != nil {
				t.Fatal(err)
			}
			up = append(up, c)
		}
		refused(t, a101, "102", 486)
		answered(t, g101, "102") // another tenant's limit is its own
		for _, c := range up {
			hangUp(t, c)
		}
		until(t, "a call fits again", func() bool {
			c, err := dial(t, a101, "102")
			if err == nil {
				hangUp(t, c)
			}
			return err == nil
		})
	})
}

// TestLookups counts what a call costs when the caches are warm.
func TestLookups(t *testing.T) {
	r := newRig(t, nil)
	a101 := r.phone(t, "101", "acme.example", siptest.Behaviour{})
	_ = r.phone(t, "102", "acme.example", siptest.Behaviour{})
	answered(t, a101, "102")
	answered(t, r.carrier, r.atSIP("493012340"))
	r.back.take()

	cost := func(what string, most, calls int, do func()) {
		t.Helper()
		do()
		lookups, asked := r.back.take()
		t.Logf("%s: %d look-ups %q, %d CURL()", what, len(lookups), lookups, len(asked))
		if len(lookups) > most || len(asked) != calls {
			t.Errorf("%s: %d look-ups, more than %d, or %d questions of the dialplan, not %d: %q", what, len(lookups), most, len(asked), calls, asked)
		}
	}
	cost("INVITE between phones", 6, 1, func() { answered(t, a101, "102") })
	cost("INVITE from a trunk", 6, 1, func() { answered(t, r.carrier, r.atSIP("493012340")) })
	cost("INVITE to a trunk", 6, 1, func() { answered(t, a101, "0301234567") })
	cost("REGISTER", 4, 0, func() {
		if err := register(t, a101); err != nil {
			t.Error(err)
		}
	})
}

// TestOutage: nobody answers Asterisk any more. Phones that it knows go on
// registering, calls are refused with 503, by which an SBC takes another node,
// and all is well as soon as somebody answers.
func TestOutage(t *testing.T) {
	r := newRig(t, nil)
	a101 := r.phone(t, "101", "acme.example", siptest.Behaviour{})
	_ = r.phone(t, "102", "acme.example", siptest.Behaviour{})
	answered(t, a101, "102")
	answered(t, r.carrier, r.atSIP("493012340"))
	r.back.dead.Store(true)
	refused(t, a101, "102", 503)
	refused(t, r.carrier, r.atSIP("493012340"), 503)
	for range 3 {
		if err := register(t, a101); err != nil {
			t.Errorf("a known phone, with nobody to ask: %v", err)
		}
	}
	r.back.dead.Store(false)
	answered(t, a101, "102")
}

// TestCacheLifetimes shows why the shipped caches have none. With a lifetime of
// either kind an outage that is longer takes objects away that are in use.
func TestCacheLifetimes(t *testing.T) {
	for name, lifetime := range map[string]string{"maximum": "object_lifetime_maximum=1", "stale": "object_lifetime_stale=1"} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			conf, err := os.ReadFile(filepath.Join(r.Dir, "etc/bulkhead/sorcery.conf"))
			if err != nil {
				t.Fatal(err)
			}
			changed := strings.ReplaceAll(string(conf), "expire_on_reload=yes", lifetime)
			if changed == string(conf) {
				t.Fatal("sorcery.conf has no caches")
			}
			if err := os.WriteFile(filepath.Join(r.Dir, "etc/bulkhead/sorcery.conf"), []byte(changed), 0o600); err != nil {
				t.Fatal(err)
			}
			r.Restart()
			a101 := r.phone(t, "101", "acme.example", siptest.Behaviour{})
			r.back.dead.Store(true)
			until(t, "the phone is refused", func() bool { return register(t, a101) != nil })
		})
	}
}

// keepCaches keeps the rig's caches equal to what its back end answers from,
// and returns their metrics.
func keepCaches(t *testing.T, r *rig) *prometheus.Registry {
	t.Helper()
	reg := prometheus.NewRegistry()
	caches, err := asterisk.NewCaches("ast1", r.Caches(), &r.back.live, discard, reg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- caches.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return reg
}

// metric returns the sum of a metric's values.
func metric(t *testing.T, reg *prometheus.Registry, name string) (sum float64) {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Error(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

const (
	expiredTotal = "bulkhead_asterisk_cache_expired_total"
	cacheBehind  = "bulkhead_asterisk_cache_behind"
)

// settled waits until something was expired, beyond what was before, and
// nothing old is on its way into the caches any more.
func settled(t *testing.T, reg *prometheus.Registry, before float64) {
	t.Helper()
	until(t, "the caches are settled", func() bool {
		return metric(t, reg, expiredTotal) > before && metric(t, reg, cacheBehind) == 0
	})
}

// change changes a tenant.
func (r *rig) change(id bulkhead.TenantID, f func(*bulkhead.Tenant)) {
	x := r.back.live.Load()
	t := *x.Tenant(id)
	f(&t)
	r.back.live.Store(x.Apply(&bulkhead.Change{Tenants: []bulkhead.Tenant{t}}, x.Revision()+1))
}

// TestChangesArrive: what changes is expired in Asterisk, and nothing else is.
func TestChangesArrive(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	reg := keepCaches(t, r)
	settled(t, reg, 0)
	a101 := r.phone(t, "101", "acme.example", siptest.Behaviour{})
	g101 := r.phone(t, "101", "globex.example", siptest.Behaviour{})
	answered(t, a101, "101")
	answered(t, g101, "101")
	r.called()
	checkCounts(t, r, a101)

	r.change("acme", func(acme *bulkhead.Tenant) {
		acme.Codecs = []string{"PCMU"}
		acme.Users = slices.Clone(acme.Users)
		acme.Users[2].HA1 = ha1("103", "acme.example", "another")
	})
	until(t, "the tenant's new codec is offered", func() bool {
		answered(t, a101, "101")
		return r.called() == "101@acme.example 0,101"
	})
	r.back.take()
	if err := register(t, g101); err != nil {
		t.Error(err)
	}
	lookups, _ := r.back.take()
	for _, l := range lookups { // what an earlier call's end asks for is another's
		if strings.Contains(l, "globex") {
			t.Errorf("the other tenant's objects were asked for again: %q", lookups)
		}
	}
}

// TestLateAnswer: an answer was made before a change, and Asterisk stores it
// after what changed was expired. The change arrives all the same.
func TestLateAnswer(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	reg := keepCaches(t, r)
	until(t, "the caches are empty", func() bool { return metric(t, reg, expiredTotal) >= 5 })
	var once sync.Once
	late := func(question string) {
		if !strings.HasPrefix(question, "ps_endpoints/single") || !strings.Contains(question, "101%40acme.example") {
			return
		}
		once.Do(func() {
			before := metric(t, reg, expiredTotal)
			r.change("acme", func(acme *bulkhead.Tenant) { acme.Codecs = []string{"PCMU"} })
			// Until all of it is expired; Asterisk gives this answer up after a second.
			const objects = 16 // of acme
			for end := time.Now().Add(900 * time.Millisecond); time.Now().Before(end) && metric(t, reg, expiredTotal) < before+objects; {
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	r.back.late.Store(&late)
	a101 := r.phone(t, "101", "acme.example", siptest.Behaviour{})
	offered := func() string {
		c, err := dial(t, a101, "101")
		if err == nil {
			hangUp(t, c)
		}
		return r.called()
	}
	t.Logf("the first call: %s", offered())
	until(t, "the change arrives", func() bool { return offered() == "101@acme.example 0,101" })
}
