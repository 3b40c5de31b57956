package asterisktest_test

import (
	"testing"

	"github.com/bulkhead-voip/bulkhead/asterisk"
	"github.com/bulkhead-voip/bulkhead/siptest"
)

// checkCounts holds a real Asterisk's own count against a call that runs, both
// of whose legs are channels, and none afterwards.
func checkCounts(t *testing.T, r *rig, p *siptest.Phone) {
	t.Helper()
	counter := asterisk.NewCounter(r.Caches())
	defer func() {
		if err := counter.Close(); err != nil {
			t.Error(err)
		}
	}()
	sessions := func(n int) func() bool {
		return func() bool {
			load, err := counter.Count(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return load.Sessions == n
		}
	}
	call, err := dial(t, p, "101")
	if err != nil {
		t.Fatal(err)
	}
	until(t, "two channels of a call", sessions(2))
	hangUp(t, call)
	until(t, "no channel", sessions(0))
	wrong := r.Caches()
	wrong.Secret = "wrong"
	refused := asterisk.NewCounter(wrong)
	if _, err := refused.Count(t.Context()); err == nil {
		t.Error("a wrong secret is taken")
	}
	if err := refused.Close(); err != nil {
		t.Error(err)
	}
}
