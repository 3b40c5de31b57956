package registry

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/bulkhead-voip/bulkhead"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(committerEnv); path != "" {
		os.Exit(commitForever(path))
	}
	goleak.VerifyTestMain(m)
}

// frame is a cell with everything that tenants need.
func frame() bulkhead.Change {
	return bulkhead.Change{
		Cells: []bulkhead.Cell{{ID: "cell1", MaxTenants: 200000}},
		Pools: []bulkhead.Pool{
			{ID: "standard", Cell: "cell1", Profile: "standard", Backup: "bulk"},
			{ID: "bulk", Cell: "cell1", Profile: "high_volume", Placement: bulkhead.Spread},
		},
		Nodes: []bulkhead.Node{
			{ID: "fs1", Pool: "standard", SIP: "127.0.0.1:5081", ESL: "127.0.0.1:8021"},
			{ID: "fs2", Pool: "bulk", Kind: bulkhead.FreeSWITCH, SIP: "127.0.0.1:5082", Weight: 50, Drain: true},
		},
		SBCs: []bulkhead.SBC{{ID: "sbc1", Cell: "cell1", SIP: "127.0.0.1:5060", Names: []string{"sbc1.example"}}},
	}
}

// tenant makes the i-th tenant, for i from 0 to 65535.
func tenant(i int) bulkhead.Tenant {
	id := fmt.Sprintf("t%05d", i)
	t := bulkhead.Tenant{
		ID: bulkhead.TenantID(id), Name: "Tenant " + id, Cell: "cell1", Profile: "standard",
		Domains: []string{id + ".example", "sip." + id + ".example"},
		Sources: []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24),
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0, 1, byte(i >> 8), byte(i)}), 64),
		},
		Trunks: []bulkhead.Trunk{{Name: "carrier", Host: "192.0.2.1", Port: 5060, Prefix: "00"}},
		Limits: bulkhead.Limits{Calls: 10 + i%5},
		Codecs: []string{"PCMA", "opus"},
	}
	if i%3 == 1 {
		t.Profile, t.Codecs, t.Limits, t.Trunks = "high_volume", nil, bulkhead.Limits{}, nil
	}
	for u := range 3 {
		ext := fmt.Sprint(1001 + u)
		t.Users = append(t.Users, bulkhead.User{Extension: ext, Name: "User " + ext, HA1: fmt.Sprintf("%032x", i*10+u)})
		t.Numbers = append(t.Numbers, bulkhead.Number{Number: fmt.Sprintf("49%05d%d", i, u), User: ext})
	}
	return t
}

// example is a valid state of n tenants.
func example(n int) bulkhead.Change {
	c := frame()
	for i := range n {
		c.Tenants = append(c.Tenants, tenant(i))
	}
	return c
}

func openSQLite(t *testing.T, path string) *SQLite {
	t.Helper()
	s, err := OpenSQLite(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close the registry: %v", err)
		}
	})
	return s
}

func newSQLite(t *testing.T) *SQLite {
	t.Helper()
	return openSQLite(t, filepath.Join(t.TempDir(), "registry.db"))
}

// whole makes a Follower's Apply of a function that wants whole states.
func whole(apply func(bulkhead.State) error) func(Update) error {
	var at bulkhead.State
	return func(u Update) error {
		state := u.State
		if u.Change != nil {
			state = at.Apply(u.Change)
			state.Revision = u.Revision
		}
		if err := apply(state); err != nil {
			return err
		}
		at = state
		return nil
	}
}

func head(t *testing.T, s Store) bulkhead.State {
	t.Helper()
	state, err := s.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return state
}

func commit(t *testing.T, s Store, base bulkhead.RevisionNumber, c bulkhead.Change) bulkhead.Revision {
	t.Helper()
	r, err := s.Commit(t.Context(), base, bulkhead.Revision{Author: "test", Change: c})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// same fails the test if two states differ in anything but their number.
func same(t *testing.T, what string, got, want bulkhead.State) {
	t.Helper()
	if d := want.Diff(got); !d.IsZero() {
		t.Fatalf("%s: the states differ: %+v", what, d)
	}
}

// within gives a call that waits 10 s to end.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}
