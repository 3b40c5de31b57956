package collectors

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func counter(name string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: "of a test"})
}

// TestAllOrNone: one clash leaves nothing behind, and what was taken back can
// be registered again.
func TestAllOrNone(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(counter("taken"))
	var s Set
	if err := s.Register(reg, "a part", counter("one"), counter("taken")); err == nil || !strings.Contains(err.Error(), "a part") {
		t.Errorf("a clash gave %v, want an error that names the part", err)
	}
	for range 2 {
		if err := s.Register(reg, "a part", counter("one"), counter("two")); err != nil {
			t.Error(err)
		}
		s.Unregister()
		s.Unregister()
	}
	if got, err := reg.Gather(); err != nil || len(got) != 1 {
		t.Errorf("%d metrics are left, want only the one that was there before (%v)", len(got), err)
	}
	if err := s.Register(nil, "a part", counter("one")); err != nil {
		t.Error(err)
	}
	s.Unregister()
}
