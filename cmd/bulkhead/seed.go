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
	"strconv"
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

// freeAddresses changes every loopback address that the demo listens on and
// that cannot be bound here. What lies elsewhere belongs to somebody else and
// is left alone.
func freeAddresses(s bulkhead.State, out io.Writer) (bulkhead.Change, error) {
	var c bulkhead.Change
	m := mover{out: out, used: map[string]bool{}}
	for _, id := range slices.Sorted(maps.Keys(s.SBCs)) {
		if b := *s.SBCs[id]; isLoopback(b.SIP) && m.move("SBC "+string(id), &b.SIP, false) {
			c.SBCs = append(c.SBCs, b)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(s.Nodes)) {
		n := *s.Nodes[id]
		if !isLoopback(n.SIP) {
			continue
		}
		sip := m.move("node "+string(id), &n.SIP, false)
		esl := n.ESL != "" && m.move("event socket of "+string(id), &n.ESL, true)
		if sip || esl {
			c.Nodes = append(c.Nodes, n)
		}
	}
	carrier := demoCarrier(s)
	moved := carrier
	if carrier != "" && m.move("carrier", &moved, false) {
		ap, err := netip.ParseAddrPort(moved)
		if err != nil {
			return c, fmt.Errorf("carrier address: %w", err)
		}
		c.Tenants = moveTrunks(s, carrier, ap)
	}
	return c, m.err
}

// moveTrunks returns the tenants that have a trunk to one address, with that
// trunk leading to another.
func moveTrunks(s bulkhead.State, from string, to netip.AddrPort) []bulkhead.Tenant {
	var out []bulkhead.Tenant
	for _, id := range slices.Sorted(maps.Keys(s.Tenants)) {
		t, moved := *s.Tenants[id], false
		t.Trunks = slices.Clone(t.Trunks)
		for i := range t.Trunks {
			if k := &t.Trunks[i]; trunkAddr(k) == from {
				k.Host, k.Port, moved = to.Addr().String(), to.Port(), true
			}
		}
		if moved {
			out = append(out, t)
		}
	}
	return out
}

func isLoopback(addr string) bool {
	ap, err := netip.ParseAddrPort(addr)
	return err == nil && ap.Addr().IsLoopback()
}

func trunkAddr(k *bulkhead.Trunk) string {
	return net.JoinHostPort(k.Host, strconv.Itoa(int(k.Port)))
}

// demoCarrier returns where the demo's carrier listens: the first trunk that
// leads to this machine. Empty: none does, and there is no carrier.
func demoCarrier(s bulkhead.State) string {
	for _, id := range slices.Sorted(maps.Keys(s.Tenants)) {
		for i := range s.Tenants[id].Trunks {
			if a := trunkAddr(&s.Tenants[id].Trunks[i]); isLoopback(a) {
				return a
			}
		}
	}
	return ""
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
