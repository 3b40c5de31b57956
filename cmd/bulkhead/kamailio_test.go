package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/internal/testenv"
	"github.com/bulkhead-voip/bulkhead/kamailio"
	"github.com/bulkhead-voip/bulkhead/kamailio/kamailiotest"
	"github.com/bulkhead-voip/bulkhead/registry"
	"github.com/bulkhead-voip/bulkhead/route"
)

// TestConfigKamailio starts a Kamailio as the command says, on the files that
// it has written, and wants its table to be there: a large one.
func TestConfigKamailio(t *testing.T) {
	testenv.Need(t, "kamailio", "kamailio")
	data := dataDir(t.TempDir())
	commitNumbers(t, data, kamailiotest.FreePort(t), 5_000)
	head, err := (&toolFlags{Data: string(data)}).head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tables, err := route.MakeTables(route.New(head), "sbc1")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "bhk") // short: a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	out, err := runTool(t, "config", "kamailio", "--data", string(data), "--sbc", "sbc1", "-o", dir, "--events", "")
	if err != nil {
		t.Fatal(err)
	}
	said := regexp.MustCompile(`The tables have (\d+) rows\. Start it .*:\n#   kamailio (.* -m (\d+) -M (\d+))\n`).FindStringSubmatch(out)
	if said == nil {
		t.Fatalf("it does not say how to start Kamailio: %s", out)
	}
	n := len(tables.Rows)
	want := kamailio.Memory(n)
	if said[1] != strconv.Itoa(n) || said[3] != strconv.Itoa(want.SharedMB) || said[4] != strconv.Itoa(want.PrivateMB) {
		t.Errorf("it says %s rows, -m %s -M %s, want %d rows, %+v", said[1], said[3], said[4], n, want)
	}
	attach, err := runTool(t, "config", "kamailio", "--data", string(data), "--sbc", "sbc1", "--attach")
	if want := fmt.Sprintf("have %d rows: Kamailio needs at least these for them, beside what it needs already:\n#   -m %d -M %d\n", n, want.SharedMB, want.PrivateMB); err != nil || !strings.Contains(attach, want) {
		t.Errorf("with --attach it does not say %q, %v", want, err)
	}

	client, err := kamailio.New(dir, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	if err := client.Apply(t.Context(), tables); err == nil || !strings.Contains(err.Error(), "the files are written") {
		t.Fatalf("with no Kamailio there: %v", err)
	}
	startAsSaid(t, strings.Fields(said[2]))
	eventually(t, 30*time.Second, "every row and set", func() string {
		d, err := client.Examine(t.Context(), tables)
		if err != nil {
			return err.Error()
		}
		return strings.Join(d, "; ")
	})
}

// TestTooManyRows: what no SBC was tested with is refused before its files are
// written, with the number and the limit.
func TestTooManyRows(t *testing.T) {
	if got, err := memoryFor("sbc1", kamailio.MaxRows); err != nil || got != kamailio.Memory(kamailio.MaxRows) {
		t.Errorf("at the limit: %+v, %v", got, err)
	}
	_, err := memoryFor("sbc1", kamailio.MaxRows+1)
	if !errors.Is(err, bulkhead.Invalid) || !strings.Contains(err.Error(), "400001 rows") || !strings.Contains(err.Error(), "takes 400000") {
		t.Errorf("over the limit: %v", err)
	}
}

// commitNumbers gives a registry an SBC and a tenant of so many numbers.
func commitNumbers(t *testing.T, data dataDir, sbc string, numbers int) {
	t.Helper()
	if err := data.open(); err != nil {
		t.Fatal(err)
	}
	store, err := registry.OpenSQLite(t.Context(), data.registry())
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	change := bulkhead.Change{
		Cells: []bulkhead.Cell{{ID: "c1"}}, SBCs: []bulkhead.SBC{{ID: "sbc1", Cell: "c1", SIP: sbc}},
		Pools: []bulkhead.Pool{{ID: "p", Cell: "c1", Profile: bulkhead.ProfileStandard}},
		Nodes: []bulkhead.Node{{ID: "fs1", Pool: "p", SIP: "127.0.0.1:5080"}},
	}
	tenant := bulkhead.Tenant{ID: "acme", Cell: "c1", Profile: bulkhead.ProfileStandard, Domains: []string{"acme.example"}, Users: []bulkhead.User{{Extension: "100", HA1: strings.Repeat("0", 32)}}}
	for i := range numbers {
		tenant.Numbers = append(tenant.Numbers, bulkhead.Number{Number: fmt.Sprintf("4930%06d", i), User: "100"})
	}
	change.Tenants = []bulkhead.Tenant{tenant}
	if _, err := store.Commit(t.Context(), 0, bulkhead.Revision{Author: "t", Change: change}); err != nil {
		t.Fatal(err)
	}
}

// startAsSaid starts a Kamailio, and ends it with the test.
func startAsSaid(t *testing.T, args []string) {
	t.Helper()
	binary, err := kamailio.Binary()
	if err != nil {
		t.Fatal(err)
	}
	var log lockedBuffer
	cmd := exec.Command(binary, args...)
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &log, &log, outputDelay
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // with its children
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("log of kamailio:\n%s", tail(log.String(), 30))
		}
	})
}
