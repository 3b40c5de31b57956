package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/kamailio"
	"github.com/bulkhead-voip/bulkhead/route"
)

// noPings is for nodes that need not answer them.
const noPings = time.Hour

// kamailioWorkers is the number of processes that read SIP.
const kamailioWorkers = 2

// sbcTenant makes a tenant as the table of an SBC knows it, whose calls come
// from an address of 127.0.0.0/8 of its own.
func sbcTenant(i int) bulkhead.Tenant {
	return bulkhead.Tenant{
		ID: tenantName(i), Cell: "c1", Profile: bulkhead.ProfileStandard, Domains: []string{tenantDomain(i)},
		Sources: []netip.Prefix{netip.PrefixFrom(sbcSource(i), 32)},
	}
}

func sbcSource(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{127, byte(1 + i>>16), byte(i >> 8), byte(i)})
}

// sbcTables are those of an SBC with n tenants whose only node is at target.
// Each has the same header rules.
func sbcTables(n int, target string, rules ...bulkhead.HeaderRule) (route.Tables, error) {
	c := bulkhead.Change{
		Cells: []bulkhead.Cell{{ID: "c1", MaxTenants: 200000}},
		SBCs:  []bulkhead.SBC{{ID: "sbc1", Cell: "c1", SIP: benchSBC}},
		Pools: []bulkhead.Pool{{ID: "std", Cell: "c1", Profile: bulkhead.ProfileStandard}},
		Nodes: []bulkhead.Node{{ID: "fs1", Pool: "std", SIP: target}},
	}
	for i := range n {
		t := sbcTenant(i)
		t.Headers = rules
		c.Tenants = append(c.Tenants, t)
	}
	return route.MakeTables(route.New(bulkhead.State{}.Apply(&c)), "sbc1")
}

// sbc is a Kamailio under load.
type sbc struct {
	dir     string
	addr    string
	client  *kamailio.Client
	process *kamailio.Process
	workers []int // the processes that read SIP
}

// startSBC starts a Kamailio. conf is its kamailio.cfg, in which LISTEN and
// DIR stand for its address and folder; "": the shipped one, with defines put
// before it. It pings its nodes each time that ping has passed.
func startSBC(ctx context.Context, conf, defines string, ping time.Duration, o kamailio.Options) (_ *sbc, err error) {
	if _, err := kamailio.Binary(); err != nil {
		return nil, err
	}
	s := &sbc{}
	if s.dir, err = os.MkdirTemp("", "bhb"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.stop())
		}
	}()
	if s.addr, err = freeUDP(); err != nil {
		return nil, err
	}
	p := kamailio.Params{SBC: "sbc1", Listen: s.addr, Workers: kamailioWorkers, PingInterval: ping}
	if err = p.Write(s.dir); err != nil {
		return nil, err
	}
	if conf != "" {
		conf = strings.NewReplacer("LISTEN", s.addr, "DIR", s.dir, "WORKERS", strconv.Itoa(kamailioWorkers)).Replace(conf)
		if err = os.WriteFile(filepath.Join(s.dir, kamailio.ConfFile), []byte(conf), 0o600); err != nil {
			return nil, err
		}
	} else if err = appendFile(filepath.Join(s.dir, kamailio.LocalFile), defines); err != nil {
		return nil, err
	}
	if s.process, err = kamailio.Start(ctx, s.dir, o, nil); err != nil {
		return nil, err
	}
	if s.client, err = kamailio.New(s.dir, nil, nil); err != nil {
		return nil, err
	}
	s.workers, err = s.readers(ctx)
	return s, err
}

func (s *sbc) stop() error {
	var errs []error
	if s.client != nil {
		errs = append(errs, s.client.Close())
	}
	if s.process != nil {
		errs = append(errs, s.process.Stop(context.Background()))
	}
	return errors.Join(append(errs, os.RemoveAll(s.dir))...)
}

// readers returns the processes that read SIP.
func (s *sbc) readers(ctx context.Context) ([]int, error) {
	b, err := s.client.Call(ctx, "core.psx")
	if err != nil {
		return nil, err
	}
	var all []struct {
		PID  int    `json:"PID"`
		Name string `json:"DSC"`
	}
	if err := json.Unmarshal(b, &all); err != nil {
		return nil, fmt.Errorf("processes of kamailio: %w in %s", err, b)
	}
	var out []int
	for _, p := range all {
		if strings.HasPrefix(p.Name, "udp receiver") {
			out = append(out, p.PID)
		}
	}
	if len(out) != kamailioWorkers {
		return nil, fmt.Errorf("kamailio has %d processes that read SIP, want %d: %s", len(out), kamailioWorkers, b)
	}
	return out, nil
}

// cpu returns the time that the processes which read SIP were on a CPU.
func (s *sbc) cpu() (time.Duration, error) {
	var sum time.Duration
	for _, pid := range s.workers {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", pid))
		if err != nil {
			return 0, err
		}
		f := bytes.Fields(b)
		if len(f) == 0 {
			return 0, fmt.Errorf("schedstat of process %d is empty", pid)
		}
		ns, err := strconv.ParseInt(string(f[0]), 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(ns)
	}
	return sum, nil
}

func appendFile(path, text string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, text...), 0o600)
}

func freeUDP() (string, error) {
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer c.Close() //nolint:errcheck // nothing was sent
	return c.LocalAddr().String(), nil
}
