package kamailio_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/kamailio"
)

// What was added as it was printed goes again, all of it and nothing else.
func TestDetach(t *testing.T) {
	const own = `#!KAMAILIO
# My own.
loadmodule "tm.so"
request_route {
    if (is_method("OPTIONS")) { sl_send_reply("200", "OK"); exit; }
    t_relay();
}
`
	dir, file := "/etc/bulkhead/kamailio", filepath.Join(t.TempDir(), "kamailio.cfg")
	parts := added(t, kamailio.Params{}.Lines(dir), own)
	conf := insert(t, own, `loadmodule "tm.so"`, parts[0])
	conf = insert(t, conf, "request_route {", parts[1])
	conf = insert(t, conf, "exit; }", parts[2]) + "reply_route { route(BULKHEAD_STRIP); }\n"
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	content := func() (lines []string) {
		t.Helper()
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for l := range strings.Lines(string(b)) {
			if strings.TrimSpace(l) != "" {
				lines = append(lines, l)
			}
		}
		return lines
	}
	write(conf)
	before := content()
	if gone, err := kamailio.Detach(file, dir, true); err != nil || len(gone) < 20 {
		t.Fatalf("%d lines would go, %v", len(gone), err)
	}
	if diff := cmp.Diff(before, content()); diff != "" {
		t.Errorf("a dry run changed the file: %s", diff)
	}
	if _, err := kamailio.Detach(file, dir, false); err != nil {
		t.Fatal(err)
	}
	var want []string
	for l := range strings.Lines(own) {
		want = append(want, l)
		if strings.HasPrefix(l, "loadmodule") {
			want = append(want, "loadmodule \"db_sqlite.so\"\n", "loadmodule \"htable.so\"\n", "loadmodule \"dispatcher.so\"\n")
		}
	}
	if diff := cmp.Diff(want, content()); diff != "" {
		t.Errorf("what is left: %s", diff)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("the file's mode is %v, %v", info.Mode(), err)
	}
	if gone, err := kamailio.Detach(file, dir, false); err != nil || len(gone) != 0 {
		t.Errorf("a second time: %q, %v", gone, err)
	}
	changed := strings.Replace(conf, "record_route();", "record_route(); t_on_failure(\"MINE\");", 1)
	write(changed)
	before = content()
	if _, err := kamailio.Detach(file, dir, false); !errors.Is(err, bulkhead.Conflict) || !strings.Contains(err.Error(), "route(BULKHEAD_SELECT)") {
		t.Errorf("a changed block: %v", err)
	}
	if diff := cmp.Diff(before, content()); diff != "" {
		t.Errorf("the file was changed: %s", diff)
	}
}
