package asterisktest_test

import (
	"bytes"
	"context"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/asterisk"
	"github.com/bulkhead-voip/bulkhead/asterisk/asterisktest"
	"github.com/bulkhead-voip/bulkhead/siptest"
)

// operators is an Asterisk that somebody set up without Bulkhead in mind.
var operators = map[string]string{
	"pjsip.conf": `[transport-udp]
type=transport
protocol=udp
bind=127.0.0.1:{{.SIPPort}}

[phone](!)
type=endpoint
context=office
disallow=all
allow=ulaw
direct_media=no

[201](phone)
auth=201
aors=201
callerid="Two Hundred One" <201>
[201]
type=auth
auth_type=userpass
username=201
password=secret-201
[201]
type=aor
max_contacts=1

[202](phone)
auth=202
aors=202
[202]
type=auth
auth_type=userpass
username=202
password=secret-202
[202]
type=aor
max_contacts=1

[carrier]
type=endpoint
context=from-carrier
disallow=all
allow=ulaw,alaw
direct_media=no
[carrier]
type=identify
endpoint=carrier
match=127.0.0.9
`,
	"extensions.conf": `[office]
exten => _2XX,1,Dial(PJSIP/${EXTEN},20)
 same => n,Hangup()
exten => 299,1,Answer()
 same => n,Wait(20)

[from-carrier]
exten => 4930999,1,Dial(PJSIP/202,20)
 same => n,Hangup()`, // without a line end
	// The modules that such a system has; no autoload.
	"modules.conf": `[modules]
autoload=no
load=res_sorcery_config.so
load=res_sorcery_memory.so
load=res_sorcery_astdb.so
load=res_pjproject.so
load=res_timing_timerfd.so
load=res_crypto.so
load=res_http_websocket.so
load=res_rtp_asterisk.so
load=res_pjsip.so
load=res_pjsip_session.so
load=res_pjsip_sdp_rtp.so
load=res_pjsip_pubsub.so
load=res_pjsip_authenticator_digest.so
load=res_pjsip_endpoint_identifier_ip.so
load=res_pjsip_endpoint_identifier_user.so
load=res_pjsip_registrar.so
load=res_pjsip_caller_id.so
load=chan_pjsip.so
load=bridge_simple.so
load=bridge_native_rtp.so
load=app_dial.so
load=pbx_config.so
load=codec_ulaw.so
load=codec_alaw.so
load=format_pcm.so
load=res_stasis.so
load=res_websocket_client.so
load=res_ari.so
load=res_ari_model.so
load=res_ari_asterisk.so
`,
}

// folder reads all files of a folder.
func folder(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		out[path] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestAttached follows docs/attach-asterisk.md: what is there goes on as it was,
// a managed tenant's calls are decided, and detaching leaves every file as it was.
func TestAttached(t *testing.T) {
	asterisktest.Need(t)
	r := &rig{}
	group, err := siptest.NewPhones(siptest.PhonesConfig{Listen: carrierIP + ":0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = group.Close() })
	if r.carrier, err = group.Add(siptest.PhoneConfig{User: "*", OnInvite: func(in *siptest.Incoming) siptest.Behaviour {
		r.note("carrier:"+in.Request().Recipient.User, in)
		return siptest.Behaviour{}
	}}); err != nil {
		t.Fatal(err)
	}
	state := twoTenants(group.Addr())
	no := false
	state.Tenants["globex"].Managed = &no
	state.Tenants["globex"].Numbers = []bulkhead.Number{{Number: "4930999", User: "101"}}
	state.Tenants["acme"].Sources = nil // the carrier is the operator's
	state.Nodes["ast1"].Unmanaged = bulkhead.DeferUnmanaged
	r.back = newBackend(t, state)
	r.Daemon = asterisktest.Start(t, asterisktest.Options{Conf: operators})
	if r.phones, err = siptest.NewPhones(siptest.PhonesConfig{Proxy: r.SIP.String()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.phones.Close() })
	p201 := r.phone(t, "201", "127.0.0.1", siptest.Behaviour{})
	p202 := r.phone(t, "202", "127.0.0.1", siptest.Behaviour{})

	asBefore := func(t *testing.T) {
		t.Helper()
		r.called()
		for range 5 {
			answered(t, p201, "202")
			answered(t, p202, "299")
			answered(t, r.carrier, r.atSIP("4930999"))
			refused(t, p201, "777", 404)
			refused(t, r.carrier, r.atSIP("4930111"), 404)
		}
		const want = "202@127.0.0.1 0,101; 202@127.0.0.1 0,101"
		if got := r.called(); got != want+"; "+want+"; "+want+"; "+want+"; "+want {
			t.Errorf("%q was called", got)
		}
	}
	asBefore(t)
	etc := filepath.Join(r.Dir, "etc")
	before := folder(t, etc)

	params := asterisk.NodeParams{
		Node: "ast1", Token: nodeToken, URLs: []string{r.back.srv.URL}, CacheSecret: r.Caches().Secret, Defer: true,
		SIP: r.SIP.String(), Recordings: r.Dir,
		Own: []asterisk.OwnEndpoint{{Name: "201", Context: "office"}, {Name: "carrier", Context: "from-carrier"}},
	}
	for range 2 { // it may be repeated
		if err := asterisk.Attach(etc, params); err != nil {
			t.Fatal(err)
		}
	}
	r.Restart()
	for _, p := range []*siptest.Phone{p201, p202} {
		if err := register(t, p); err != nil {
			t.Fatal(err)
		}
	}
	r.back.take()
	t.Run("others", asBefore)
	if _, calls := r.back.take(); len(calls) == 0 {
		t.Error("Bulkhead was not asked")
	}
	t.Run("managed", func(t *testing.T) {
		a101 := r.phone(t, "101", "acme.example", siptest.Behaviour{})
		_ = r.phone(t, "102", "acme.example", siptest.Behaviour{})
		answered(t, a101, "102")
		answered(t, r.carrier, r.atSIP("493012340"))
		answered(t, a101, "0301234567")
		if got := r.called(); got != "102@acme.example 8,101; 101@acme.example 8,101; carrier:49301234567 8,101" {
			t.Errorf("%q was called", got)
		}
	})
	t.Run("nobody answers", func(t *testing.T) {
		r.back.dead.Store(true)
		defer r.back.dead.Store(false)
		asBefore(t)
	})
	t.Run("changes", func(t *testing.T) {
		caches, err := asterisk.NewCaches("ast1", r.Caches(), &r.back.live, discard, nil)
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- caches.Run(ctx) }()
		r.back.take()
		until(t, "the caches are expired", func() bool {
			answered(t, r.carrier, r.atSIP("493012340"))
			lookups, _ := r.back.take()
			return slices.Contains(lookups, "realtime/ps_endpoints/single id=101%40acme.example")
		})
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})

	would, err := asterisk.Detach(etc, true)
	if err != nil {
		t.Fatal(err)
	}
	changed, err := asterisk.Detach(etc, false)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(would, changed) || len(changed) == 0 {
		t.Errorf("it changed %q, and said it would %q", changed, would)
	}
	after := folder(t, etc)
	for _, name := range slices.Sorted(maps.Keys(after)) {
		if !bytes.Equal([]byte(before[name]), []byte(after[name])) {
			t.Errorf("%s is not as it was", name)
		}
	}
	if len(before) != len(after) {
		t.Errorf("there were %d files, now there are %d", len(before), len(after))
	}
	r.Restart()
	for _, p := range []*siptest.Phone{p201, p202} {
		if err := register(t, p); err != nil {
			t.Fatal(err)
		}
	}
	r.back.take()
	asBefore(t)
	if lookups, calls := r.back.take(); len(lookups)+len(calls) > 0 {
		t.Errorf("Bulkhead is asked after detaching: %q %q", lookups, calls)
	}
}
