package kamailio_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/kamailio"
)

// The doctor finds every kind of difference, and nothing where there is none.
func TestExamine(t *testing.T) {
	w := newWorld(t, kamailio.Params{PingInterval: time.Hour})
	var tenants []bulkhead.Tenant
	for i := range 20 { // more rows than Verify draws
		tenants = append(tenants, tenant(bulkhead.TenantID(fmt.Sprintf("t%02d", i)), "standard", fmt.Sprintf("4930%02d", i), fmt.Sprintf("127.%d.0.0/16", i+1)))
	}
	w.apply(bulkhead.Change{Tenants: tenants})
	examine := func(what string, want ...string) {
		t.Helper()
		got, err := w.Client.Examine(t.Context(), w.tables())
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != len(want) {
			t.Errorf("%s: %q", what, got)
			return
		}
		for i := range want {
			if !strings.Contains(got[i], want[i]) {
				t.Errorf("%s: %q, want %q", what, got[i], want[i])
			}
		}
	}
	examine("all is well")
	table := "bulkhead_a"
	var live struct {
		Item struct{ Value string }
	}
	w.rpc(&live, "htable.get", "bulkhead_meta", "b_live")
	if live.Item.Value == "1" {
		table = "bulkhead_b"
	}
	w.rpc(nil, "htable.sets", table, "n:493007", "somebody")
	examine("one row is another", "row n:493007 in memory")
	w.rpc(nil, "htable.sets", table, "n:000", "somebody")
	examine("and one is too many", "row n:493007 in memory", "number of rows in memory", "row n:000 in memory does not belong there")
	if diffs, err := w.Client.Verify(t.Context(), w.tables()); err != nil || len(diffs) == 0 {
		t.Errorf("a read-back finds %q, %v", diffs, err)
	}
	w.apply(bulkhead.Change{Tenants: tenants[:1]})
	examine("it is repaired")
	eventually(t, "a reload may be a second ago", func() bool {
		_, err := w.Client.Call(t.Context(), "dispatcher.add", w.tables().Sets[0].ID, "sip:127.0.0.9:9")
		return err == nil
	})
	examine("a node that nobody knows", "127.0.0.9:9, which does not belong there")
}

// rpc asks Kamailio as an operator with kamcmd would.
func (w *world) rpc(out any, method string, params ...any) {
	w.t.Helper()
	b, err := w.Client.Call(w.t.Context(), method, params...)
	if err != nil {
		w.t.Fatal(err)
	}
	if out != nil {
		if err := json.Unmarshal(b, out); err != nil {
			w.t.Fatal(err)
		}
	}
}
