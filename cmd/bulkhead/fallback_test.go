package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestDemoWithoutAWholeKamailio: a Kamailio that does not start does not keep
// anybody from seeing the demo, and he is told why and what to do.
func TestDemoWithoutAWholeKamailio(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a real process")
	}
	bin, dir := plainBuild(t), t.TempDir()
	broken := "#!/bin/sh\necho 'ERROR: load_module(): could not open module <db_sqlite.so>' >&2\nexit 1\n"
	if err := os.WriteFile(filepath.Join(dir, "kamailio"), []byte(broken), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+string(filepath.ListSeparator)+os.Getenv("PATH"))
	p := startDemo(t, bin, "--data", filepath.Join(dir, "data"))
	eventually(t, 60*time.Second, "the table, and why there is no Kamailio", func() string {
		out := p.out.String()
		for _, want := range []string{"db_sqlite", "kamailio-sqlite-modules", "--no-kamailio", "SBC: pure-Go stand-in", "tenant "} {
			if !strings.Contains(out, want) {
				return want + " is missing"
			}
		}
		return ""
	})
	p.interrupt(t, 30*time.Second)
}
