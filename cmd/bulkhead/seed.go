package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/deploy"
	"github.com/bulkhead-voip/bulkhead/registry"
)

// lockData keeps a second "run" out of a data folder. A crash frees the lock.
func lockData(d dataDir) (unlock func(), err error) {
	f, err := os.OpenFile(d.path("run.lock"), os.O_CREATE|os.O_RDWR, 0o640)
	if err != nil {
		return nil, fmt.Errorf("lock the data folder: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("data folder %s is in use by another \"bulkhead run\": end that one, or choose another folder with --data: %w", d, bulkhead.Conflict)
	}
	return func() { f.Close() }, nil
}

// seedDemo fills an empty registry with the example, and moves what it names
// to free addresses where something else already listens.
func seedDemo(ctx context.Context, data dataDir, out io.Writer) error {
	store, err := registry.OpenSQLite(ctx, data.registry())
	if err != nil {
		return err
	}
	defer store.Close()
	head, err := store.Head(ctx)
	if err != nil {
		return err
	}
	if head.Revision == 0 {
		f, err := registry.ParseFile("deploy/example.yaml", deploy.Example)
		if err != nil {
			return err
		}
		if _, err := f.Apply(ctx, store, registry.ApplyOptions{Author: "demo", Message: "the example"}); err != nil {
			return err
		}
		if head, err = store.Head(ctx); err != nil {
			return err
		}
	}
	change, err := freeAddresses(head, out)
	if err != nil || change.IsZero() {
		return err
	}
	_, err = store.Commit(ctx, head.Revision, bulkhead.Revision{Author: "demo", Message: "addresses that are free on this machine", Change: change})
	return err
}

// freeAddresses changes every SIP and ESL address, and the carrier's, that
// cannot be bound here.
func freeAddresses(s bulkhead.State, out io.Writer) (bulkhead.Change, error) {
	var c bulkhead.Change
	m := mover{out: out, used: map[string]bool{}}
	for _, id := range slices.Sorted(maps.Keys(s.SBCs)) {
		if b := *s.SBCs[id]; m.move("SBC "+string(id), &b.SIP, false) {
			c.SBCs = append(c.SBCs, b)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(s.Nodes)) {
		n := *s.Nodes[id]
		sip := m.move("node "+string(id), &n.SIP, false)
		esl := n.ESL != "" && m.move("event socket of "+string(id), &n.ESL, true)
		if sip || esl {
			c.Nodes = append(c.Nodes, n)
		}
	}
	trunk := trunkOf(s)
	if m.move("carrier", &trunk, false) {
		ap, err := netip.ParseAddrPort(trunk)
		if err != nil {
			return c, fmt.Errorf("carrier address: %w", err)
		}
		for _, id := range slices.Sorted(maps.Keys(s.Tenants)) {
			t := *s.Tenants[id]
			t.Trunks = slices.Clone(t.Trunks)
			for i := range t.Trunks {
				t.Trunks[i].Host, t.Trunks[i].Port = ap.Addr().String(), ap.Port()
			}
			if len(t.Trunks) > 0 {
				c.Tenants = append(c.Tenants, t)
			}
		}
	}
	return c, m.err
}

// mover finds free ports.
type mover struct {
	out  io.Writer
	used map[string]bool
	err  error
}

// move replaces *addr's port if it cannot be bound, and reports whether it did.
func (m *mover) move(what string, addr *string, tcp bool) bool {
	if free(*addr, tcp) && !m.used[*addr] {
		m.used[*addr] = true
		return false
	}
	host, _, err := net.SplitHostPort(*addr)
	if err != nil {
		m.err = fmt.Errorf("address %q of %s: %w", *addr, what, err)
		return false
	}
	for range 100 {
		l, err := net.ListenPacket("udp", net.JoinHostPort(host, "0"))
		if err != nil {
			m.err = fmt.Errorf("no free port at %s for %s: %w", host, what, err)
			return false
		}
		next := l.LocalAddr().String()
		l.Close()
		if !m.used[next] && free(next, tcp) {
			fmt.Fprintf(m.out, "%s is taken: %s is at %s\n", *addr, what, next)
			*addr = next
			m.used[next] = true
			return true
		}
	}
	m.err = fmt.Errorf("no free port at %s for %s", host, what)
	return false
}

func free(addr string, tcp bool) bool {
	if tcp {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return false
		}
		return l.Close() == nil
	}
	l, err := net.ListenPacket("udp", addr)
	if err != nil {
		return false
	}
	return l.Close() == nil
}
