package asterisktest_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/siptest"
)

// theirs is what the operator of an Asterisk has beside the shipped files.
var theirs = map[string]string{
	"modules.conf": `
load = app_queue.so
load = app_confbridge.so
`,
	"queues.conf":     "[general]\n[helpdesk]\nstrategy = ringall\n",
	"confbridge.conf": "[default_user]\ntype = user\n[default_bridge]\ntype = bridge\n",
	// What was reached is told by the status.
	"extensions.conf": `
[support]
exten => 493012350,1,PJSIPHangup(429)
[menu]
exten => s,1,PJSIPHangup(420)
[bulkhead-tap]
exten => s,1,ExecIf($["${TENANT}" = "acme"]?PJSIPHangup(421))
 same => n,Return()
`,
}

// TestEveryAction: whatever a plan can hold, a real Asterisk does.
func TestEveryAction(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	for name, text := range theirs {
		f, err := os.OpenFile(filepath.Join(r.Dir, "etc", name), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	r.Restart()
	r.change("acme", func(acme *bulkhead.Tenant) {
		acme.PBX = []bulkhead.Handover{
			{Name: "support", Kind: bulkhead.HandoverContext, Value: "support"}, {Name: "menu", Kind: bulkhead.HandoverIVR, Value: "menu"},
			{Name: "queue", Kind: bulkhead.HandoverQueue, Value: "helpdesk"}, {Name: "room", Kind: bulkhead.HandoverConference, Value: "3000"},
		}
		acme.Announcements = []bulkhead.Announcement{{Name: "closed", File: "demo-congrats.gsm"}}
		all := []string{"mon", "tue", "wed", "thu", "fri", "sat", "sun"}
		acme.Schedules = []bulkhead.Schedule{
			{Name: "always", Open: "user:103", Closed: "reject:410", Hours: []bulkhead.Hours{{Days: all, From: "00:00", To: "24:00"}}},
			{Name: "never", Open: "user:103", Closed: "reject:410"},
		}
		for i, to := range []bulkhead.Target{"pbx:support", "pbx:menu", "pbx:queue", "pbx:room", "announcement:closed", "schedule:always", "schedule:never"} {
			acme.Numbers = append(slices.Clone(acme.Numbers), bulkhead.Number{Number: "49301235" + string(rune('0'+i)), Target: to})
		}
		acme.Users = slices.Clone(acme.Users)
		acme.Users[0].Forward = &bulkhead.Forward{Busy: "user:103", NoAnswer: "reject:406", Unavailable: "reject:413", After: 1}
	})
	_ = r.phone(t, "103", "acme.example", siptest.Behaviour{})
	inside := r.phone(t, "102", "acme.example", siptest.Behaviour{})
	call := func(number string) *siptest.Call {
		t.Helper()
		c, err := dial(t, r.carrier, r.atSIP(number))
		if err != nil {
			t.Fatalf("%s: %v", number, err)
		}
		return c
	}

	t.Run("handover", func(t *testing.T) {
		refused(t, r.carrier, r.atSIP("493012350"), 429)
		refused(t, r.carrier, r.atSIP("493012351"), 420)
	})
	for number, running := range map[string]string{"493012352": "!Queue!helpdesk!", "493012353": "!ConfBridge!3000!", "493012354": "!Playback!demo-congrats!"} {
		t.Run(running, func(t *testing.T) {
			c := call(number)
			until(t, "Asterisk runs "+running, func() bool {
				out, err := r.CLI(t.Context(), "core show channels concise")
				return err == nil && strings.Contains(out, running)
			})
			hangUp(t, c)
		})
	}
	t.Run("schedule", func(t *testing.T) {
		r.called()
		answered(t, r.carrier, r.atSIP("493012355"))
		if got := r.called(); got != "103@acme.example 8,101" {
			t.Errorf("in open hours %q was called", got)
		}
		refused(t, r.carrier, r.atSIP("493012356"), 410)
	})
	t.Run("forwarding", func(t *testing.T) {
		refused(t, inside, "101", 413) // not registered
		var is atomic.Pointer[siptest.Behaviour]
		phone, err := r.phones.Add(siptest.PhoneConfig{User: "101", Domain: "acme.example", Password: "secret-101", OnInvite: func(in *siptest.Incoming) siptest.Behaviour {
			r.note("101", in)
			return *is.Load()
		}})
		if err != nil {
			t.Fatal(err)
		}
		if err := register(t, phone); err != nil {
			t.Fatal(err)
		}
		// 480 is what an SBC says of somebody who is not registered.
		for _, b := range []siptest.Behaviour{{Code: 480}, {Code: 404}} {
			is.Store(&b)
			refused(t, inside, "101", 413)
		}
		for _, b := range []siptest.Behaviour{{Code: 486}, {Code: 600}, {Code: 603}} {
			is.Store(&b)
			r.called()
			answered(t, inside, "101")
			if got := r.called(); got != "101 8,101; 103@acme.example 8,101" {
				t.Errorf("101 answers %d, and %q was called", b.Code, got)
			}
		}
		is.Store(&siptest.Behaviour{Delay: time.Minute})
		refused(t, inside, "101", 406)
	})
	t.Run("recorded and ended in time", func(t *testing.T) {
		r.change("acme", func(acme *bulkhead.Tenant) {
			acme.Record, acme.Limits.MaxDuration = bulkhead.RecordAll, 2
		})
		c, err := dial(t, inside, "103")
		if err != nil {
			t.Fatal(err)
		}
		select {
		case <-c.Done():
		case <-time.After(time.Minute):
			t.Fatal("the call lasts longer than it may")
		}
		if !c.RemoteHangup() {
			t.Error("it was not Asterisk that ended the call")
		}
		until(t, "the recording is there", func() bool {
			files, _ := filepath.Glob(filepath.Join(r.Dir, "var/acme/*.wav"))
			if len(files) != 1 {
				return false
			}
			info, err := os.Stat(files[0])
			return err == nil && info.Size() > 8000 // half a second
		})
	})
	t.Run("tapped", func(t *testing.T) {
		r.change("acme", func(acme *bulkhead.Tenant) { acme.Tap = true })
		refused(t, inside, "103", 421)
	})
}
