package freeswitch

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/bulkhead-voip/bulkhead"
)

func TestParseStatus(t *testing.T) {
	b, err := os.ReadFile("testdata/status.json")
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseStatus(string(b))
	want := bulkhead.PBXLoad{Sessions: 0, MaxSessions: 200, Rate: 0, MaxRate: 50}
	if err != nil || got != want {
		t.Errorf("the captured status is %+v, %v", got, err)
	}
	for _, bad := range []string{
		"", "[]", `{"status":"error","message":"Parse error"}`, strings.Replace(string(b), `"active":0`, `"active":-1`, 1),
	} {
		if _, err := parseStatus(bad); !errors.Is(err, bulkhead.Invalid) {
			t.Errorf("status %q returns %v", bad, err)
		}
	}
}

func FuzzStatus(f *testing.F) {
	f.Add(`{"command":"status","status":"success","response":{"sessions":{"count":{"active":3,"limit":200},"rate":{"current":0,"max":50}}}}`)
	f.Add(`{"status":"success","response":{"sessions":{"count":{"active":1e99}}}}`)
	f.Fuzz(func(t *testing.T, s string) {
		if got, err := parseStatus(s); err == nil && (got.Sessions < 0 || got.MaxSessions < 0) {
			t.Errorf("%q is %+v", s, got)
		}
	})
}
