package kamailio

import (
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

// cellOfTwo is a snapshot with the tenants acme and beta in cell c1 and the
// SBC sbc1, and the SBC sbc2 in another cell.
func cellOfTwo() *route.Snapshot {
	c := bulkhead.Change{
		Cells: []bulkhead.Cell{{ID: "c1"}, {ID: "c2"}},
		Pools: []bulkhead.Pool{{ID: "std", Cell: "c1", Profile: "standard"}, {ID: "other", Cell: "c2", Profile: "standard"}},
		Nodes: []bulkhead.Node{{ID: "n1", Pool: "std", SIP: "192.0.2.10:5060"}},
		SBCs:  []bulkhead.SBC{{ID: "sbc1", Cell: "c1", SIP: "192.0.2.1:5060"}, {ID: "sbc2", Cell: "c2", SIP: "192.0.2.2:5060"}},
	}
	for i, id := range []bulkhead.TenantID{"acme", "beta"} {
		c.Tenants = append(c.Tenants, bulkhead.Tenant{
			ID: id, Cell: "c1", Profile: "standard", Domains: []string{string(id) + ".example"},
			Numbers: []bulkhead.Number{{Number: "49301" + string(rune('0'+i))}},
			Sources: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), 32)},
		})
	}
	return route.New(bulkhead.State{}.Apply(&c))
}

func TestAnswer(t *testing.T) {
	x := cellOfTwo()
	for _, tt := range []struct {
		name, query string
		sbc         bulkhead.SBCID
		tenant      bulkhead.TenantID
		status      int
	}{
		{"own domain", "d=acme.example&s=198.51.100.0&n=1", "sbc1", "acme", 200},
		{"capitals, encoded, with something new", "x=1&d=ACME%2Eexample&s=198.51.100.0&n=%2B4930", "sbc1", "acme", 200},
		{"own number at the SBC's address", "d=192.0.2.1&s=198.51.100.1&n=493011", "sbc1", "beta", 200},
		{"somebody else's number", "d=192.0.2.1&s=198.51.100.1&n=493010", "sbc1", "", 404},
		{"somebody else's domain", "d=beta.example&s=198.51.100.0&n=1", "sbc1", "", 404},
		{"IPv6, as kamailio prints it", "d=acme.example&s=2001:db8:0:0:0:0:0:1&n=1", "sbc1", "", 404},
		{"another cell's SBC", "d=acme.example&s=198.51.100.0&n=1", "sbc2", "", 404},
		{"nobody asks", "d=acme.example&s=198.51.100.0&n=1", "", "", 403},
		{"no source", "d=acme.example&n=1", "sbc1", "", 400},
		{"no domain", "s=198.51.100.0&n=1", "sbc1", "", 400},
		{"a source with a zone", "d=acme.example&s=fe80::1%25eth0&n=1", "sbc1", "", 400},
		{"bad escape", "d=%zz&s=198.51.100.0", "sbc1", "", 400},
		{"endless", "d=acme.example&s=198.51.100.0&n=" + strings.Repeat("1", 4000), "sbc1", "", 400},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, sum := Answer(x, tt.sbc, tt.query, nil)
			want := ""
			if tt.tenant != "" {
				want = string(tt.tenant) + "|" + x.TenantRow("c1", tt.tenant)
			}
			if string(got) != want || sum.Status != tt.status || sum.Tenant != tt.tenant {
				t.Errorf("Answer() = %q, %+v; want %q, %d", got, sum, want, tt.status)
			}
		})
	}
}

// hostile is what somebody may write into a Request-URI.
var hostile = []string{
	"", " ", "|", "acme|1", "acme.example|", "a\r\nX: y", "%00", "\x00", "' OR 1=1 --", "%", "_", "*", "${api(x)}", "&amp;", "&d=acme.example",
	"=", "?", "#", "../..", "sip:acme.example", "acme.example.", "acme..example", "ACME.EXAMPLE\x00", strings.Repeat("a", 256), "é", "\xff\xfe", "<>", "\"", ";",
}

func TestHostileQuestions(t *testing.T) {
	x := cellOfTwo()
	for _, a := range hostile {
		for _, b := range hostile {
			for _, raw := range []string{
				"d=" + a + "&s=198.51.100.0&n=" + b,
				"d=" + url.QueryEscape(a) + "&s=198.51.100.0&n=" + url.QueryEscape(b),
			} {
				got, sum := Answer(x, "sbc1", raw, nil)
				if sum.Tenant != "" && raw != "d="+a+"&s=198.51.100.0&n="+b {
					t.Errorf("%q is answered with tenant %q", raw, sum.Tenant)
				}
				checkAnswer(t, x, raw, got, sum)
			}
		}
	}
}

// checkAnswer holds for every question: a whole row of a tenant, or nothing.
func checkAnswer(t *testing.T, x *route.Snapshot, query string, got []byte, sum Answered) {
	t.Helper()
	switch sum.Status {
	case http.StatusOK:
		if want := string(sum.Tenant) + "|" + x.TenantRow("c1", sum.Tenant); sum.Tenant == "" || string(got) != want {
			t.Errorf("%q: answered with %q, want %q", query, got, want)
		}
	case http.StatusNotFound, http.StatusBadRequest:
		if len(got) != 0 || sum.Tenant != "" {
			t.Errorf("%q: %d with %q of %q", query, sum.Status, got, sum.Tenant)
		}
	default:
		t.Errorf("%q: status %d", query, sum.Status)
	}
}

func FuzzAnswer(f *testing.F) {
	x := cellOfTwo()
	for _, q := range append(hostile, "d=acme.example&s=198.51.100.0&n=1", "d=192.0.2.1&s=198.51.100.1&n=493011", "d=a&s=::&n=%2B1") {
		f.Add(q)
	}
	f.Fuzz(func(t *testing.T, query string) {
		got, sum := Answer(x, "sbc1", query, nil)
		checkAnswer(t, x, query, got, sum)
	})
}
